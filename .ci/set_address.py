"""Write the address of your repository everywhere: `python .ci/set_address.py NAME [REPOSITORY]`.

NAME is an account or an organization on GitHub. The settings, the badges and Colab cells of all notebooks, the package,
README and CONTRIBUTING are changed; run it again with another name to change them again.
"""
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {".ipynb", ".md", ".py", ".yml", ".yaml"}


def set_address(root: Path, user: str, repository: str) -> list[str]:
    "Replace the old address, which `settings.ini` knows, in all files that git tracks; returns their names."
    if not re.fullmatch(r"[A-Za-z0-9](-?[A-Za-z0-9])*", user): raise ValueError(f"GitHub allows no account {user!r}")
    if not re.fullmatch(r"[\w.-]+", repository): raise ValueError(f"GitHub allows no repository {repository!r}")
    config = ConfigParser(delimiters=["="])
    config.read(root / "settings.ini", encoding="utf-8")
    old_user, old_repository = config["DEFAULT"]["user"], config["DEFAULT"]["repo"]
    replaced = {
        f"{old_user}/{old_repository}": f"{user}/{repository}",
        f"{old_user}.github.io/{old_repository}": f"{user}.github.io/{repository}",
    }
    changed = []
    tracked = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        path = root / name
        if path.suffix not in SUFFIXES or path.is_symlink() or not path.is_file(): continue
        text = path.read_text(encoding="utf-8")
        for old, new in replaced.items():
            text = text.replace(old, new)
        if text != path.read_text(encoding="utf-8"):
            path.write_text(text, encoding="utf-8", newline="\n")
            changed.append(name)
    settings = (root / "settings.ini").read_text(encoding="utf-8")
    settings = re.sub(r"(?m)^user = .*$", f"user = {user}", settings)
    settings = re.sub(r"(?m)^repo = .*$", f"repo = {repository}", settings)
    (root / "settings.ini").write_text(settings, encoding="utf-8", newline="\n")
    return ["settings.ini", *changed]


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    user, repository = [*sys.argv[1:], "pytorch_course"][:2]
    try:
        names = set_address(ROOT, user, repository)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"the address is now {user}/{repository} in", *names, sep="\n  ")
