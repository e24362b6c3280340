"""The layout of plan.json, and a check that a plan has it.

Sizes are in bytes and times in seconds, of one device unless noted. A range is [low, high].

A plan stays a nested dict with this schema. Dataclasses with `asdict` were considered instead. They
would need twelve classes for the 70 lines of `SCHEMA`, sections are merged from the compiler's and
the analytic part, and readers of plan.json would still need a description of the JSON itself. The
check keeps plans with and without a compiler in one layout.
"""

from typing import Any

VERSION = 3
_NUMBER = (int, float)
_RANGE = [_NUMBER]
SCHEMA: dict[str, Any] = {
    "version": int,
    "what": str,
    "topology": {"name": str, "chip": str, "chips": int, "devices": int, "slices": int},
    "mesh": dict,
    "model": {"parameters": int, "dtype": str, "remat": str},
    "batch": {"rows": int, "rows_per_chip": _NUMBER, "lengths": dict, "tokens": int},
    "flops": {"model_per_step": _NUMBER, "source": str},
    "memory": {
        "source": str,
        "limit": _NUMBER,
        "total": _NUMBER,
        "fits": bool,
        "split": dict,
        "largest": [{"bytes": _NUMBER, "kind": str, "name": str}],
    },
    "roofline": {
        "source": str,
        "compute": _NUMBER,
        "memory": _NUMBER,
        "network": _NUMBER,
        "bound": str,
    },
    "compute": (
        None,
        {
            "source": str,
            "seconds": _NUMBER,
            "instruction_roofline": _NUMBER,
            "flops": _NUMBER,
            "bytes": _NUMBER,
            "kernels": _NUMBER,
            "kernels_without_estimate": int,
            "parts": [{"part": str, "direction": str, "seconds": _NUMBER, "flops": _NUMBER}],
        },
    ),
    "collectives": (
        None,
        {
            "source": str,
            "seconds": _NUMBER,
            "exposed": _NUMBER,
            "kinds": [
                {
                    "kind": str,
                    "axis": str,
                    "overlapped": bool,
                    "count": int,
                    "bytes": _NUMBER,
                    "seconds": _NUMBER,
                    "exposed": _NUMBER,
                }
            ],
        },
    ),
    "estimate": (
        None,
        {
            "source": str,
            "step_seconds": _RANGE,
            "tokens_per_second": _RANGE,
            "mfu": _RANGE,
            "training_tokens": _NUMBER,
            "days": _RANGE,
            "chip_hours": _RANGE,
        },
    ),
    "decoding": (
        None,
        {
            "source": str,
            "texts": int,
            "tokens": int,
            "cache_bytes": {"own": int, "cross": int},
            "prefill_seconds": _RANGE,
            "token_seconds": _RANGE,
            "tokens_per_second_per_chip": _RANGE,
        },
    ),
    "cost": (None, {"source": str, "price_per_chip_hour": _NUMBER, "cost": _RANGE}),
    "compiler": (None, {"jax": str, "libtpu": str, "seconds": _NUMBER, "cached": bool}),
    "notes": [str],
}


def check_schema(value: Any, schema: Any = None, where: str = "plan") -> None:
    """Check that a plan is laid out as `SCHEMA` describes.

    Args:
        value: The plan, or a part of it.
        schema: The schema of that part; None is the whole `SCHEMA`.
        where: The path of that part, for the error.

    Raises:
        ValueError: A part differs; the message has the path of the first.
    """
    schema = SCHEMA if schema is None else schema
    if isinstance(schema, tuple) and None in schema:
        if value is not None:
            check_schema(value, next(s for s in schema if s is not None), where)
    elif isinstance(schema, list):
        if not isinstance(value, list):
            raise ValueError(f"{where} is {value!r}; expected a list")
        for number, item in enumerate(value):
            check_schema(item, schema[0], f"{where}[{number}]")
    elif isinstance(schema, dict):
        if not isinstance(value, dict) or set(value) != set(schema):
            raise ValueError(f"{where} has {value!r}; expected the keys {sorted(schema)}")
        for name, inner in schema.items():
            check_schema(value[name], inner, f"{where}.{name}")
    elif not isinstance(value, schema):
        raise ValueError(f"{where} is {value!r}; expected {schema}")
