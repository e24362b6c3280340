"""Configuration errors: `ConfigError`, and `require` and `require_field`, which raise it."""


class ConfigError(ValueError):
    """A configured value is invalid; raised for user mistakes, never for bugs of this package.

    The command line prints the message without a traceback, and after it the gin file and line, or
    the flag, that set each of `names`.

    Args:
        message: What was given, what is expected, and how to correct it.
        *names: The gin names that set the value, such as "BATCH_SIZE" or
            "TransformerConfig.vocab_size".
    """

    def __init__(self, message: str, *names: str):
        super().__init__(message)
        self.message = message
        self.names = names


def require(condition: object, message: str, *names: str) -> None:
    """Raise `ConfigError(message, *names)` unless a condition holds.

    Type checkers do not narrow types by this call. Use `if ...: raise ConfigError(...)` where later
    code depends on the condition, and where formatting the message needs the condition to be false.

    Args:
        condition: Anything with a truth value.
        message: What was given and what is expected.
        *names: The gin names that set the value.

    Raises:
        ConfigError: If the condition is false.
    """
    if not condition:
        raise ConfigError(message, *names)


def require_field(config: object, name: str, condition: object, expected: str) -> None:
    """Raise ConfigError unless a field of a configuration object is valid.

    The error reads "TransformerConfig.dropout_rate must be in [0, 1); got 1.5" and carries the gin
    name "TransformerConfig.dropout_rate".

    Args:
        config: The object that gin configures; the name of its class is part of the gin name.
        name: The field.
        condition: Whether the value is valid.
        expected: What the field must be, as the end of the sentence "NAME must be ...".

    Raises:
        ConfigError: If the condition is false.
    """
    if not condition:
        gin_name = f"{type(config).__name__}.{name}"
        raise ConfigError(f"{gin_name} must be {expected}; got {getattr(config, name)!r}", gin_name)
