"""What importing `subjects` costs and gives."""

import subprocess
import sys

import pytest

import subjects
import subjects.client


def test_importing_the_package_imports_no_library() -> None:
    script = "import sys; import subjects, subjects.client, subjects.names; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"pydantic", "numpy", "nats", "msgpack", "opentelemetry"} & set(done.stdout.split())


@pytest.mark.parametrize("package", [subjects, subjects.client])
def test_every_name_is_where_the_package_says(package) -> None:
    assert [name for name in package.__all__ if getattr(package, name).__name__ != name] == []
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        package.Nothing  # noqa: B018
