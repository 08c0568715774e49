"""python -m experiments.tiny_stories COUNT"""

from absl import app

from experiments.tiny_stories.corpus import documents


def main(argv) -> None:
    count = int(argv[1]) if len(argv) > 1 else 20
    for _, made in zip(range(count), documents(seed=0)):
        for role, text in made.messages:
            print(f"{role}: {text}" if role else text)
        print()


if __name__ == "__main__":
    app.run(main)
