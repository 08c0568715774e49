"""`python -m tokenspeed convert`, in this process."""

import pytest

from tokenspeed.cli import main
from tokenspeed.models import hf_config


def test_it_says_how_much_it_wrote(capsys, tmp_path):
    out = tmp_path / "quantised"
    assert main(["convert", "--model", "tiny", "--weights", "int8", "--ignore", "re:.*layers.[123]", "--out", str(out),
                 "--shard-gb", "0.001"]) == 0  # fmt: skip
    assert capsys.readouterr() == (f"{out}: 0.002 GB of weights in place of 0.002 GB\n", "")
    quantisation = hf_config.from_folder(out).quantisation
    assert quantisation is not None and quantisation.scheme_of("model.layers.0.mlp.up_proj") is not None
    assert quantisation.scheme_of("model.layers.1.mlp.up_proj") is None
    assert (out / "model-00003-of-00003.safetensors").exists() and (out / "tokenizer.json").exists()


def test_an_interruption_says_how_to_go_on(capsys, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("tokenspeed.weights.convert.rounded", interrupt)
    command = ["convert", "--model", "tiny", "--weights", "int8", "--out", str(tmp_path / "out")]
    assert main(command) == 130
    assert capsys.readouterr().err == "" and not list(tmp_path.iterdir())  # nothing was finished
    assert main([*command, "--shard-gb", "0.0001"]) == 130
    assert capsys.readouterr().err == f"interrupted; the same command goes on from {tmp_path / 'out'}.partial\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "nowhere"], "--model: no folder 'nowhere'"),
        (["--weights", "int3"], "--weights: invalid choice: 'int3'"),
        (["--group-size", "x"], "--group-size: invalid int value: 'x'"),
        (["--group-size", "48"], "group_size: expected a divisor of all inputs, as 128 is"),
        (["--head", "int8"], "head: expected none, since the model's head is its embedding table"),
        (["--weights", "fp8", "--asymmetric"], "symmetric: expected int4 or int8 for zero points"),
        (["--text", "nowhere.txt"], "nowhere.txt: No such file"),
        (["--shard-gb", "0"], "--shard-gb: expected a number above 0"),
        (["--shard-gb", "nan"], "--shard-gb: expected a number above 0"),
        (["--out", ""], "--out: expected a folder to make, got ''"),
        (["--out", "."], "--out: expected a folder to make, got '.'"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, tmp_path):
    assert main(["convert", "--model", "tiny", "--weights", "int4", "--out", str(tmp_path / "out"), *arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.startswith("error: ") and err.count("\n") == 1 and not out
    assert not list(tmp_path.iterdir())
