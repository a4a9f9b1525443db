"""Errors a caller can tell apart, and the checks of arguments."""

from __future__ import annotations

import copy
import errno
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama2c.errors import FileError, ModelError, RequestError, check_int, check_real, file_error, not_found


def test_both_are_value_errors_and_neither_is_the_other() -> None:
    assert issubclass(RequestError, ValueError) and issubclass(ModelError, ValueError)
    assert not issubclass(RequestError, ModelError) and not issubclass(ModelError, RequestError)


def test_a_request_error_names_its_parameter() -> None:
    error = RequestError("top_k: expected an integer", "top_k")
    for same in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (type(same), str(same), same.param) == (RequestError, "top_k: expected an integer", "top_k")
    assert RequestError("messages do not fit").param is None


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        (FileNotFoundError, errno.ENOENT),
        (PermissionError, errno.EACCES),
        (IsADirectoryError, errno.EISDIR),
        (NotADirectoryError, errno.ENOTDIR),
        (FileExistsError, errno.EEXIST),
        (OSError, errno.EIO),
    ],
)
def test_a_file_error_keeps_what_the_system_said(kind: type[OSError], number: int) -> None:
    original = OSError(number, "it broke")
    assert type(original) is kind
    error = file_error(original, Path("folder/model.bin"), "a readable folder")
    for same in (error, pickle.loads(pickle.dumps(error))):
        assert isinstance(same, kind) and isinstance(same, FileError)
        assert str(same) == "folder/model.bin: expected a readable folder, found: it broke"
        assert (same.errno, same.filename) == (number, "folder/model.bin")
    assert file_error(error, "other.bin") is error


def test_a_file_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "none.bin").read_bytes()
    error = file_error(caught.value, tmp_path / "none.bin")
    assert str(error) == f"{tmp_path / 'none.bin'}: expected a readable file, found: No such file or directory"
    assert error.errno == errno.ENOENT
    assert str(file_error(OSError("no number"), "a.bin")) == "a.bin: expected a readable file, found: no number"


def test_not_found() -> None:
    error = not_found(Path("a.bin"), "expected a file, found none")
    assert isinstance(error, FileNotFoundError) and isinstance(error, FileError)
    assert (str(error), error.errno, error.filename) == ("a.bin: expected a file, found none", errno.ENOENT, "a.bin")


@pytest.mark.parametrize(("value", "low", "high"), [(3, 0, None), (np.int32(3), 3, 3), (0, 0, 1), (2**70, 0, None)])
def test_check_int_gives_an_int(value: Any, low: int, high: int | None) -> None:
    found = check_int("n", value, low, high)
    assert type(found) is int and found == value


def test_check_int_refuses() -> None:
    for value, high, expected in ((-1, None, "of at least 0"), (4, 3, "from 0 to 3")):
        with pytest.raises(RequestError) as caught:
            check_int("top_k", value, 0, high)
        assert (str(caught.value), caught.value.param) == (f"top_k: expected an integer {expected}, found {value}", "top_k")
    for value, kind in ((1.0, "float"), ("1", "str"), (None, "NoneType"), (True, "bool")):
        with pytest.raises(TypeError, match=f"^top_k: expected an integer, found {kind}$"):
            check_int("top_k", value, 0)


def test_check_real() -> None:
    def valid(number: float) -> bool:
        return 0 <= number <= 1

    assert check_real("p", np.float32(0.5), "a number from 0 to 1", valid) == 0.5
    for value, found in ((2, "2.0"), (math.nan, "nan"), (10**400, "an integer beyond all floats")):
        with pytest.raises(RequestError) as caught:
            check_real("p", value, "a number from 0 to 1", valid)
        assert (str(caught.value), caught.value.param) == (f"p: expected a number from 0 to 1, found {found}", "p")
    with pytest.raises(TypeError, match=r"^p: expected a number, found str$"):
        check_real("p", "1", "a number from 0 to 1", valid)
