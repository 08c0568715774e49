"""Bounded polls in PTX, which Pallas has no primitive for.

A poll ends after so many readings: what it waits for may never come, and a launch that does not end takes the device
with it. `semaphore_wait` of Pallas has no such limit; `semaphore_read` can be polled in a loop that has one, but then
every thread reads, with the scope of the whole system. It reads with acquire: a fence after a relaxed read, as
`semaphore_wait` has it, is a memory barrier more.

Each function here returns (1 in all threads where one of them gave up else 0, cycles), int32 scalars.
"""

from collections.abc import Callable
from typing import Any, cast

import jax.numpy as jnp
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith

THREADS = 128
PAIRS = 16
"""Of a program's outputs of a stage, each with its flag: two words of 32 bits that are stored and read as one of 64."""

_READ_UNTIL = """{
.reg .pred p, q; .reg .b32 v, n;
setp.ge.u32 p, $3, 1; mov.b32 n, $4;
@!p bra DONE;
MORE: ld.acquire.gpu.global.b32 v, [$1];
setp.ge.u32 p, v, $2;
sub.u32 n, n, 1; setp.ne.u32 q, n, 0;
@p bra DONE;
@q bra MORE;
mov.b32 $0, 1; bra END;
DONE: mov.b32 $0, 0;
END:
}"""
"""Reads [$1] until it is at least $2, $4 times at most, in the threads whose $3 is 1; $0 is 1 where it was never."""


def _read_pairs_until(loads: int) -> str:
    """Reads the first $3 of so many pairs, 128 pairs apart, until all their flags are at least $2; else as above.

    And their other words below 2^31, which they always are: ptxas would not read what nobody looks at.
    """
    values = "".join(
        f"mov.b64 v{i}, 0xffffffff00000000; setp.gt.s32 p, $3, {i};\n"
        f"@p ld.relaxed.gpu.global.b64 v{i}, [$1+{i * THREADS * 8}];\n"
        for i in range(loads)
    )
    flags = "".join(
        f"mov.b64 {{low, high}}, v{i}; min.u32 least, least, high; max.u32 most, most, low;\n" for i in range(loads)
    )
    return f"""{{
.reg .pred p, q; .reg .b32 low, high, least, most, n; .reg .b64 {", ".join(f"v{i}" for i in range(loads))};
mov.b32 n, $4;
MORE: mov.b32 least, -1; mov.b32 most, 0;
{values}{flags}
setp.lt.u32 q, most, 0x80000000; setp.ge.and.u32 p, least, $2, q;
sub.u32 n, n, 1; setp.ne.u32 q, n, 0;
@p bra DONE;
@q bra MORE;
mov.b32 $0, 1; bra END;
DONE: mov.b32 $0, 0;
END:
}}"""


def counters(ref, at, group, begun, limit, *, count: int, groups: int, programs: int):
    """Thread t < count reads counter at + t until all programs of group `group + t` of `groups` have signalled.

    Where `begun` is 0 it reads once and does not wait.
    """

    def gave_up(ref, at, group, begun, limit):
        thread = _thread()
        need = _i32(programs)
        if groups > 1:
            mine = arith.addi(group, thread)
            need = arith.subi(
                _first_program(arith.addi(mine, _i32(1)), groups, programs), _first_program(mine, groups, programs)
            )
        need, active = arith.muli(need, begun), arith.cmpi(arith.CmpIPredicate.ult, thread, _i32(count))
        return _read_until(ref, arith.addi(at, thread), need, active, limit)

    return _polled(gave_up, ref, at, group, begun, limit)


def flags(ref, value, limit, *, programs: int):
    """Every thread reads the word of its program until that is `value`, then that of its program + 128."""

    def gave_up(ref, value, limit):
        thread, found = _thread(), _i32(0)
        for first in range(0, programs, THREADS):
            active = arith.cmpi(arith.CmpIPredicate.ult, thread, _i32(programs - first))
            found = arith.ori(found, _read_until(ref, arith.addi(thread, _i32(first)), value, active, limit))
        return found

    return _polled(gave_up, ref, value, limit)


def pairs(ref, at, group, value, limit, *, each: int, groups: int, programs: int):
    """All threads read the pairs of a group's programs (`each` of a program, from word `at`) until all flags are there.

    What would be read again after another poll, the activation, is read by it.
    """
    most = -(-programs // groups) * each

    def gave_up(ref, at, group, value, limit):
        i32, thread = ir.IntegerType.get_signless(32), _thread()
        begin = _first_program(group, groups, programs)
        end = _first_program(arith.addi(group, _i32(1)), groups, programs)
        own = arith.subi(arith.muli(arith.subi(end, begin), _i32(each)), thread)
        loads = arith.divsi(arith.addi(own, _i32(THREADS - 1)), _i32(THREADS))
        pair = arith.addi(arith.muli(begin, _i32(each)), thread)
        pointer = _pointer(ref, arith.addi(at, arith.muli(pair, _i32(2))))
        return mgpu.utils.inline_ptx(
            _read_pairs_until(-(-most // THREADS)), pointer, value, loads, limit, result_types=i32,
            has_side_effects=True,
        )  # fmt: skip

    return _polled(gave_up, ref, at, group, value, limit)


def store_pairs(ref, at, value, *, each: int) -> None:
    """Threads t < each store (t, value) at word `at` + 2t, once all threads are here."""

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.Layout.WG_SPLAT, plgpu.Layout.WG_SPLAT))
    def inlined(_, ref, at, value):
        at, value = at.registers.item(), value.registers.item()
        i32, thread = ir.IntegerType.get_signless(32), _thread()
        active = arith.extui(i32, arith.cmpi(arith.CmpIPredicate.ult, thread, _i32(each)))
        mgpu.utils.warpgroup_barrier()
        mgpu.utils.inline_ptx(
            "{ .reg .pred p; .reg .b64 v; setp.ge.u32 p, $3, 1; mov.b64 v, {$1, $2};"
            " @p st.relaxed.gpu.global.b64 [$0], v; }",
            _pointer(ref, arith.addi(at, arith.muli(thread, _i32(2)))),
            thread,
            value,
            active,
            has_side_effects=True,
        )

    cast(Any, inlined)(ref, at, value)


def _polled(gave_up: Callable, ref, *scalars):
    """Runs `gave_up` in every thread, with the scalars as MLIR values; its result is 1 where the thread gave up."""
    scalar = plgpu.ShapeDtypeStruct((), jnp.int32, layout=plgpu.Layout.WG_SPLAT)

    @plgpu.inline_mgpu(
        arg_types=(plgpu.RefType(), *[plgpu.Layout.WG_SPLAT] * len(scalars)), return_type=(scalar, scalar)
    )
    def inlined(_, ref, *scalars):
        start = _clock()
        found = _any_thread(gave_up(ref, *(scalar.registers.item() for scalar in scalars)))
        return _result(found), _result(arith.subi(_clock(), start))

    return cast(Any, inlined)(ref, *scalars)


def _read_until(ref, index, need, active, limit):
    """Of each thread its own counter."""
    i32 = ir.IntegerType.get_signless(32)
    return mgpu.utils.inline_ptx(
        _READ_UNTIL, _pointer(ref, index), need, arith.extui(i32, active), limit, result_types=i32,
        has_side_effects=True,
    )  # fmt: skip


def _any_thread(value):
    """1 where the value of any thread of the warpgroup is not 0; all of them get here first."""
    i1, i32 = ir.IntegerType.get_signless(1), ir.IntegerType.get_signless(32)
    found = mgpu.utils.inline_ptx(
        f"bar.red.or.pred $0, $1, {THREADS}, $2;",
        mgpu.utils.warpgroup_barrier_idx(sync=False),
        arith.cmpi(arith.CmpIPredicate.ne, value, _i32(0)),
        result_types=i1,
        has_side_effects=True,
        convergent=True,
    )
    return arith.extui(i32, found)


def _first_program(group, groups: int, programs: int):
    """Of a group, as `stages.group_of` has it."""
    return arith.divui(arith.addi(arith.muli(group, _i32(programs)), _i32(groups - 1)), _i32(groups))


def _pointer(ref, index):
    return mgpu.utils.getelementptr(mgpu.utils.memref_ptr(ref), [index], ir.IntegerType.get_signless(32))


def _i32(value: int):
    return mgpu.c(value, ir.IntegerType.get_signless(32))


def _thread():
    return arith.remui(mgpu.utils.thread_idx(), _i32(THREADS))


def _clock():
    i32 = ir.IntegerType.get_signless(32)
    return mgpu.utils.inline_ptx("mov.u32 $0, %clock;", result_types=i32, has_side_effects=True)


def _result(value):
    return mgpu.FragmentedArray.splat(value, (), is_signed=True)
