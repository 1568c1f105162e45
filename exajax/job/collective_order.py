"""Puts back the order of collectives that a CPU program loses when it is read from disk.

XLA:CPU runs the thunks (kernels, copies, collectives, loops, ...) of a sequence as soon as their
inputs are there, several at once. What keeps the collectives of all devices in one order is a
resource, the communicator, that each of them uses. A compiled program has one for all its
sequences. A serialized one names it once for each sequence, and reading makes as many
communicators: a collective is then no longer ordered with those in the branches, loops and calls
beside it (`ThunkSequenceSerDesProtobuf::FromProto` in XLA's
`xla/backends/cpu/runtime/thunk_proto_serdes.cc`). Two devices start two of them in different
orders, each blocks a thread of the pool until the other device comes, and once the threads have
run out nobody comes: XLA aborts after 40 s. Between processes the order is all that matches a
message with its receiver.

XLA runs a sequence of at most `SEQUENTIAL` thunks one after the other. A longer one whose
collectives have lost their order is therefore cut into calls of that length, and these into calls
again: its thunks run in the order in which the compiler has scheduled them, which is the same on
all devices. What they compute is the same, bit for bit.

The format is XLA's own and not public; a test fails when it changes.
"""

import functools
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

SEQUENTIAL = 8
"""`execute_sequential_num_thunks_threshold` of XLA's `ThunkExecutor`."""

HEADER = b"pjrt_ifrt"
"""In what comes before the program: which runtime has serialized it."""

STRING = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
INT64 = descriptor_pb2.FieldDescriptorProto.TYPE_INT64

MESSAGES: dict[str, dict[str, tuple[int, bool, int | str]]] = {
    # What is read and written of xla.proto's ExecutableAndOptionsProto, executable.proto and
    # thunk.proto: number, whether it repeats, and type of each field. Others are carried along.
    "Executable": {"program": (1, False, "Program")},
    "Program": {"sequence": (6, False, "Sequence")},
    "Sequence": {"thunks": (1, True, "Thunk"), "users": (2, True, "Users")},
    "Users": {"thunks": (1, True, INT64), "resource": (2, False, "Other")},
    "Thunk": {
        "kind": (1, False, STRING),
        "info": (2, False, "Info"),
        "call": (3, False, "Nested"),
        "conditional": (4, False, "Nested"),
        "loop": (10, False, "Loop"),
        "collective": (18, False, "Other"),
    },
    "Info": {"name": (1, False, STRING)},
    "Nested": {"sequences": (1, True, "Sequence")},
    "Loop": {"condition": (1, False, "Sequence"), "body": (2, False, "Sequence")},
    "Other": {},
}


def put_back(serialized: bytes) -> bytes:
    """Returns a serialized program for CPU devices whose collectives run in one order.

    Args:
        serialized: what JAX's cache keeps of it.

    Returns:
        The same bytes, where no collective has lost its order.

    Raises:
        ValueError: they are not of the format that is known here.
    """
    begin = _program_begins(serialized)
    executable = _message("Executable")()
    try:
        executable.ParseFromString(serialized[begin:])
    except DecodeError as error:
        raise ValueError(f"not a serialized program of XLA: {error}") from None
    sequence = executable.program.sequence
    if not sequence.thunks:
        raise ValueError("a serialized program of XLA without thunks")
    if not _order(sequence):
        return serialized
    return serialized[:begin] + executable.SerializeToString()


def _program_begins(serialized: bytes) -> int:
    """Returns the length of the header: its own length as a varint, and that many bytes."""
    length = 0
    for i, byte in enumerate(serialized[:5]):
        length |= (byte & 127) << (7 * i)
        if byte < 128:
            begin = i + 1 + length
            if HEADER in serialized[i + 1 : min(begin, i + 33)]:
                return begin
            break
    raise ValueError("not a program that this JAX has serialized")


def _order(sequence: Any) -> bool:
    """Orders the collectives of a sequence and of those in it; returns whether it had to."""
    changed, nested_users = False, 0
    for thunk in sequence.thunks:
        for nested in _nested(thunk):
            changed |= _order(nested)
        nested_users += any(map(_has_collectives, _nested(thunk)))
    users = nested_users + sum(thunk.HasField("collective") for thunk in sequence.thunks)
    if nested_users and users > 1 and len(sequence.thunks) > SEQUENTIAL:
        _cut(sequence)
        changed = True
    return changed


def _cut(sequence: Any) -> None:
    """Makes a sequence one of at most `SEQUENTIAL` calls, each of as many of its thunks."""
    while len(sequence.thunks) > SEQUENTIAL:
        calls = type(sequence)()
        for begin in range(0, len(sequence.thunks), SEQUENTIAL):
            end = begin + SEQUENTIAL
            call = calls.thunks.add(kind="call")
            call.info.name = f"in-order.{begin}"
            called = call.call.sequences.add()
            called.thunks.extend(sequence.thunks[begin:end])
            for users in sequence.users:
                here = [number - begin for number in users.thunks if begin <= number < end]
                if here:
                    called.users.add(thunks=here, resource=users.resource)
        sequence.CopyFrom(calls)


def _has_collectives(sequence: Any) -> bool:
    return any(
        thunk.HasField("collective") or any(map(_has_collectives, _nested(thunk)))
        for thunk in sequence.thunks
    )


def _nested(thunk: Any) -> list[Any]:
    """Returns the sequences in a thunk: branches, condition and body of a loop, what is called."""
    sequences = [*thunk.call.sequences, *thunk.conditional.sequences]
    if thunk.HasField("loop"):
        sequences += [thunk.loop.condition, thunk.loop.body]
    return sequences


@functools.cache
def _message(name: str) -> Any:
    """Returns the class of a message of `MESSAGES`."""
    file = descriptor_pb2.FileDescriptorProto(
        name="exajax/job/collective_order.proto",
        package="exajax.xla",
        syntax="proto3",
    )
    field = descriptor_pb2.FieldDescriptorProto
    for message, fields in MESSAGES.items():
        made = file.message_type.add(name=message)
        for called, (number, repeated, kind) in fields.items():
            added = made.field.add(name=called, number=number)
            added.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if isinstance(kind, str):
                added.type, added.type_name = (
                    field.TYPE_MESSAGE,
                    f".exajax.xla.{kind}",
                )
            else:
                added.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"exajax.xla.{name}"))
