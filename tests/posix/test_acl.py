"""ACLs and capabilities with the real tools, on a mount and on a local folder: they must print the same."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.process import harness

pytestmark = pytest.mark.process

AS_OTHER = 'other() { setpriv --reuid "$1" --regid "$2" --clear-groups sh -c "$3" 2>&1; echo "exit $?"; }\n'

ACLS = """
umask 077
touch f; setfacl -m u:1000:rw,g:50:r f; getfacl -cn f; stat -c %A f
chmod 640 f; getfacl -cn f
other 1000 1000 'cat f; echo more >> f; setfacl -m u:7:r f'
chmod 666 f
other 1000 1000 'cat f; echo more >> f'
other 1001 50 'cat f; echo more >> f'
mkdir d; setfacl -d -m u:1000:rwx,g:7:rx d; getfacl -cn d
touch d/x; mkdir d/y; ln -s x d/l; mkfifo d/p
for name in d/x d/y d/l d/p; do stat -c '%n %A' $name; getfacl -cn $name; done
chmod 711 d; setfacl -m u:1001:wx d; other 1001 1001 'echo new > d/z; stat -c "%a %u" d/z; cat d/x'
cp -a f g; getfacl -cn g; mv g h; getfacl -cn h
setfacl -b f; getfacl -cn f; setfacl -k d; getfacl -cn d
setfacl -d -m u:7:r f; echo "exit $?"
"""

CAPABILITIES = """
cp /bin/true t; chmod 777 t; setcap cap_net_raw+ep t; getcap t
other 1000 1000 'echo more >> t'
getcap t; setcap cap_net_raw+ep t
other 1000 1000 'dd if=/dev/zero of=t bs=1 count=1 conv=notrunc status=none'
getcap t
cp /bin/true u; chmod 6777 u; other 1000 1000 'echo more >> u; stat -c %a u'
chmod 6777 u; other 1000 1000 'dd if=/dev/zero of=u bs=1 count=1 conv=notrunc status=none; stat -c %a u'
setfattr -n trusted.t -v 1 u; setfattr -n user.u -v 2 u; setfattr -n security.s -v 3 u
getfattr -d -m - u; other 1000 1000 'getfattr -d -m - u; setfattr -n trusted.t -v 2 u; setfattr -n security.s -v 2 u'
"""


@pytest.mark.parametrize(
    ("script", "tools"), [(ACLS, ("setfacl", "getfacl")), (CAPABILITIES, ("setcap", "getcap", "setfattr"))]
)
def test_tools_do_as_on_a_local_disk(mounted: Path, tmp_path: Path, script: str, tools: tuple[str, ...]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can act as other users")
    for tool in (*tools, "setpriv"):
        harness.needs_program(tool)
    printed = []
    for folder in (mounted, tmp_path):
        folder.chmod(0o777)
        # The shell starts in the folder: other users could not reach it from above.
        done = subprocess.run(
            ["sh", "-c", AS_OTHER + script], cwd=folder, capture_output=True, text=True, timeout=60, check=False
        )
        printed.append(done.stdout + done.stderr)
    found, expected = printed
    if "not supported" in expected:
        pytest.skip("the local disk lacks what is to be compared")
    assert found == expected
    assert len(expected.splitlines()) > 10
