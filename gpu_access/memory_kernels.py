"""Single steps on memory for compiled loops: prefetch, load, store and add at an address.

Addresses are uint64. Each becomes an instruction or two in the loop that calls it.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


@intrinsic
def prefetch(typingctx, address):
    """Ask for the cache line at an address, into the second-level cache.

    It waits for many more lines at the same time than the first level does, which is what counts
    where rows come from memory: the copy is a quarter faster for it.
    """

    def codegen(context, builder, signature, args):
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read, level, data = (ir.Constant(flag, v) for v in (0, 2, 1))
        builder.call(function, [builder.inttoptr(args[0], byte), read, level, data])
        return context.get_dummy_value()

    return types.void(types.uint64), codegen


@intrinsic
def copy_bytes(typingctx, target, source, size):
    """Copy bytes between addresses (memcpy)."""

    def codegen(context, builder, signature, args):
        byte = ir.IntType(8).as_pointer()
        to, at = (builder.inttoptr(a, byte) for a in args[:2])
        cgutils.raw_memcpy(builder, to, at, args[2], 1)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.uint64), codegen


def _mover(width):
    """Make what copies `width` bytes between addresses in one load and one store."""

    @intrinsic
    def move(typingctx, target, source):
        def codegen(context, builder, signature, args):
            kind = ir.VectorType(ir.IntType(8), width)
            to, at = (builder.inttoptr(a, kind.as_pointer()) for a in args)
            value = builder.load(at)
            value.align = 1
            builder.store(value, to).align = 1
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64), codegen

    return move


move_4, move_8, move_16, move_32, move_64 = (_mover(width) for width in (4, 8, 16, 32, 64))


@intrinsic
def add_to(typingctx, array, place, value):
    """Add to a number of an int64 array, as one step for all threads; return what it was."""

    def codegen(context, builder, signature, args):
        numbers = context.make_array(signature.args[0])(context, builder, args[0])
        where = builder.gep(numbers.data, [args[1]])
        return builder.atomic_rmw("add", where, args[2], "acq_rel")

    return types.int64(array, types.int64, types.int64), codegen


def _value_at(bits):
    """Make what reads an integer of so many bits at an address."""
    kind = {8: types.uint8, 32: types.int32, 64: types.int64}[bits]

    @intrinsic
    def read(typingctx, address):
        def codegen(context, builder, signature, args):
            where = builder.inttoptr(args[0], ir.IntType(bits).as_pointer())
            value = builder.load(where)
            value.align = 1
            return value

        return kind(types.uint64), codegen

    return read


byte_at, int32_at, int64_at = _value_at(8), _value_at(32), _value_at(64)
