"""The one exception that means "your configuration is wrong", as opposed to "our code is"."""


class ConfigError(ValueError):
    """A value that a user set cannot work.

    The message says what was given and what is wanted. `names` are the configuration names that set
    the culprit ("BATCH_SIZE", "TransformerConfig.vocab_size"); the command line looks up which file
    and line or which flag bound them and prints that beside the message, without a traceback.
    """

    def __init__(self, message: str, *names: str):
        super().__init__(message)
        self.message = message
        self.names = names
