"""What the face asks of a session about runtime environments. Mixed into runtime/session.py.

A directory is packed once for each state it is in, and put once for each content, as a shared object that this program
holds to its end: workers that start later need it too.
"""

import threading
from collections.abc import Mapping
from typing import Any

from zmesh import runtime_env as envs

_packing = threading.Lock()  # two threads that pack the same would put it twice, and one of the two would be freed


class EnvironmentCalls:
    """The part of a Session that deals with runtime environments. Any thread."""

    runtime_env: Any = None  # of this process and of the tasks it submits, as workers are told of it
    runtime_env_here: Mapping[str, Any] = {}  # the same, as users see it; replaced, never changed

    def enter_environment(self: Any, given: dict[str, Any]) -> None:
        """Have all tasks that this program submits from now on run in this environment."""
        self.runtime_env = self.environment(given)
        self.runtime_env_here = given

    def environment(self: Any, given: Mapping[str, Any] | None) -> Any:
        """Return the environment of a task as workers are told of it: ours, with `given` laid over it; None if empty.

        Raises:
            ConfigError: a directory cannot be packed.
            StoreFullError: it does not fit into shared memory.
        """
        return envs.describe(self.runtime_env, self.packed_environment(given)) if given else self.runtime_env

    def packed_environment(self: Any, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return `given` with packages in the place of paths: so it makes sense on other hosts too."""
        packed = dict(given)
        if "working_dir" in packed:
            packed["working_dir"] = self._package(packed["working_dir"], module=False)
        if "py_modules" in packed:
            packed["py_modules"] = [self._package(path, module=True) for path in packed["py_modules"]]
        if isinstance(packed.get("pip"), list):
            packed["pip"] = envs.requirements(packed["pip"])
        return packed

    def _package(self: Any, path: Any, *, module: bool) -> envs.Package:
        if isinstance(path, envs.Package):
            return path
        with _packing:
            files = envs.files_of(path, module=module)
            known, package = self.packages.get((path, module), (None, None))
            if known != files:
                digest, data = envs.pack(files)
                package, _ = self.shared.get(digest, (None, None))
                if package is None:
                    ref = self.put(data)
                    self._promote([ref._entry])
                    package = envs.Package(digest, ref.binary())
                    self.shared[digest] = (package, ref)
                self.packages[path, module] = (files, package)
            found: envs.Package = package
            return found

    def renew_packages(self: Any) -> None:
        """This process has another name: have its node keep the packages anew, and name them so. Under the lock."""
        renewed = {digest: envs.Package(digest, ref.binary()) for digest, (_, ref) in self.shared.items()}
        # Nobody waits for the answer: what tells workers of them goes the same way, and later.
        self.core.references.promote([ref._entry for _, ref in self.shared.values()])
        self.shared = {digest: (renewed[digest], ref) for digest, (_, ref) in self.shared.items()}
        self.packages.clear()
        for spec in self.core.specs:
            if "env" in spec.options:
                spec.options["env"] = envs.renamed(spec.options["env"], renewed)
        if self.runtime_env is not None:
            self.runtime_env = envs.renamed(self.runtime_env, renewed)
