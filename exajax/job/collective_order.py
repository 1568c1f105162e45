"""Restores the order of collectives in serialized CPU programs, without which XLA deadlocks.

XLA:CPU runs the thunks (kernels, copies, collectives, loops, ...) of a sequence concurrently, each
as soon as its inputs are ready. Collectives keep one order on all devices because each of them uses
a shared resource, the communicator. A freshly compiled program has one communicator for all its
sequences; deserializing makes a separate one for each sequence, so that a collective is no longer
ordered with those inside branches, loops and calls of the same sequence
(`ThunkSequenceSerDesProtobuf::FromProto` in XLA's
`xla/backends/cpu/runtime/thunk_proto_serdes.cc`). Two devices then start two collectives in
different orders, each blocks a thread of the pool until the other device joins, and once the
threads have run out none can: XLA aborts after 40 s. Between processes, the order alone matches a
message with its receiver.

XLA runs a sequence of at most `SEQUENTIAL` thunks one after the other. A longer one whose
collectives have lost their order is therefore nested into calls of at most that length: its thunks
run in the order in which the compiler has scheduled them, which is the same on all devices. The
results are the same, bit for bit.

The format is XLA's own and not public. Relied on, in jax 0.10.2 to 0.12.0: the header, and the
fields in `MESSAGES`. A program of another form is refused with a `ValueError`, and then compiled
anew at every start (`tests/job/test_collective_order.py`).
"""

import functools
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

SEQUENTIAL = 8
"""`execute_sequential_num_thunks_threshold` of XLA's `ThunkExecutor`."""

HEADER = b"pjrt_ifrt"
"""Marker in the header of a serialized program that names the runtime that wrote it."""

STRING = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
INT64 = descriptor_pb2.FieldDescriptorProto.TYPE_INT64

MESSAGES: dict[str, dict[str, tuple[int, bool, int | str]]] = {
    # The fields that are used of xla.proto's ExecutableAndOptionsProto, executable.proto and
    # thunk.proto: number, whether it repeats, and type. Unknown fields survive a round trip.
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


def restore_order(serialized: bytes) -> bytes:
    """A serialized CPU program, changed so that its collectives run in one order on all devices.

    Args:
        serialized: the program as JAX's compilation cache stores it.

    Returns:
        The changed program; `serialized` itself where no collective has lost its order.

    Raises:
        ValueError: the bytes are not of the format that is known here.
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
    if not _order_collectives(sequence):
        return serialized
    return serialized[:begin] + executable.SerializeToString()


def _program_begins(serialized: bytes) -> int:
    """The offset of the program behind its header, which is a varint length and that many bytes."""
    length = 0
    for i, byte in enumerate(serialized[:5]):
        length |= (byte & 127) << (7 * i)
        if byte < 128:
            begin = i + 1 + length
            if HEADER in serialized[i + 1 : min(begin, i + 33)]:
                return begin
            break
    raise ValueError("not a program that this JAX has serialized")


def _order_collectives(sequence: Any) -> bool:
    """Orders the collectives of a sequence and of all nested ones; returns whether it changed."""
    changed, nested_users = False, 0
    for thunk in sequence.thunks:
        for nested in _nested(thunk):
            changed |= _order_collectives(nested)
        nested_users += any(map(_has_collectives, _nested(thunk)))
    users = nested_users + sum(thunk.HasField("collective") for thunk in sequence.thunks)
    if nested_users and users > 1 and len(sequence.thunks) > SEQUENTIAL:
        _nest_into_calls(sequence)
        changed = True
    return changed


def _nest_into_calls(sequence: Any) -> None:
    """Turns a sequence into at most `SEQUENTIAL` calls, nested until no sequence is longer."""
    while len(sequence.thunks) > SEQUENTIAL:
        calls = type(sequence)()
        for begin in range(0, len(sequence.thunks), SEQUENTIAL):
            end = begin + SEQUENTIAL
            call = calls.thunks.add(kind="call")
            call.info.name = f"in-order.{begin}"
            called = call.call.sequences.add()
            called.thunks.extend(sequence.thunks[begin:end])
            for users in sequence.users:
                moved = [number - begin for number in users.thunks if begin <= number < end]
                if moved:
                    called.users.add(thunks=moved, resource=users.resource)
        sequence.CopyFrom(calls)


def _has_collectives(sequence: Any) -> bool:
    return any(
        thunk.HasField("collective") or any(map(_has_collectives, _nested(thunk)))
        for thunk in sequence.thunks
    )


def _nested(thunk: Any) -> list[Any]:
    """The sequences nested in a thunk: branches, a loop's condition and body, called sequences."""
    sequences = [*thunk.call.sequences, *thunk.conditional.sequences]
    if thunk.HasField("loop"):
        sequences += [thunk.loop.condition, thunk.loop.body]
    return sequences


@functools.cache
def _message(name: str) -> Any:
    """The protobuf class of a message of `MESSAGES`."""
    file = descriptor_pb2.FileDescriptorProto(
        name="exajax/job/collective_order.proto",
        package="exajax.xla",
        syntax="proto3",
    )
    field = descriptor_pb2.FieldDescriptorProto
    for message, fields in MESSAGES.items():
        message_type = file.message_type.add(name=message)
        for field_name, (number, repeated, kind) in fields.items():
            added = message_type.field.add(name=field_name, number=number)
            added.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if isinstance(kind, str):
                added.type, added.type_name = field.TYPE_MESSAGE, f".exajax.xla.{kind}"
            else:
                added.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"exajax.xla.{name}"))
