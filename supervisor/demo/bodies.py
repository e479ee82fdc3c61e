"""Reading the JSON bodies that both demo programs receive.

A leaf. Its law: whatever was sent, the outcome is a value of the wanted type or a BadBody that
says what is wrong and where.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")


class BadBody(Exception):
    """The body is not what was wanted; the text says what is wrong and where.

    ``is_json``: it was JSON, but not of the wanted shape.
    """

    def __init__(self, message: str, is_json: bool) -> None:
        super().__init__(message)
        self.is_json = is_json


def read_body(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """The body as the decoder's type. Raises BadBody."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise BadBody(str(error), is_json=True) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadBody(f"no valid JSON: {error}", is_json=False) from None
    except RecursionError:
        raise BadBody("no valid JSON: nested too deep", is_json=False) from None
