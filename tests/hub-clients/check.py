"""Downloads a repository from a hub stand-in with the hubs' own clients and compares every byte with its source.

Usage: check.py URL ORG/NAME SOURCE WORK [GATED TOKEN]

URL is the stand-in's address, SOURCE the directory it serves as ORG/NAME, WORK an empty directory for downloads, and
GATED a second repository of the same content whose files need TOKEN. Prints one line per check; any difference or
exception ends the program with a status other than 0.
"""

import os
import sys
from pathlib import Path

url, repo, source, work = sys.argv[1:5]
gated, token = (sys.argv[5:7] + [None, None])[:2]

# The clients read these once, when they are imported.
os.environ.update(
    HF_ENDPOINT=url,
    HF_HOME=f"{work}/hf-home",
    HF_HUB_DISABLE_TELEMETRY="1",
    MODELSCOPE_ENDPOINT=url,
    MODELSCOPE_CACHE=f"{work}/ms-cache",
    MODELSCOPE_HOME=f"{work}/ms-home",
)
for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN", "HTTP_PROXY", "http_proxy"):
    os.environ.pop(name, None)

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from modelscope.hub.snapshot_download import snapshot_download as modelscope_download


def files(root):
    """Path to content of all files below root."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(Path(root).rglob("*")) if p.is_file()}


expected = files(source)
assert expected, "the source has no files"


def same(what, root, wanted=expected):
    found = {path: data for path, data in files(root).items() if not path.startswith((".msc", ".mv", ".cache/"))}
    assert found.keys() == wanted.keys(), f"{what}: {sorted(found.keys() ^ wanted.keys())[:10]}"
    for path, data in wanted.items():
        assert found[path] == data, f"{what}: {path} differs"
    print(f"ok: {what}, {len(found)} files", flush=True)


def raises(what, kind, call):
    try:
        call()
    except kind:
        print(f"ok: {what} raises {kind.__name__}", flush=True)
    else:
        raise AssertionError(f"{what} does not raise {kind.__name__}")


api = HfApi()
info = api.model_info(repo)
assert len(info.sha) == 40 and not info.private and not info.gated
assert {sibling.rfilename for sibling in info.siblings} == expected.keys()
assert api.model_info(repo, revision="v1.0").sha == info.sha
refs = api.list_repo_refs(repo)
assert refs.branches[0].target_commit == refs.tags[0].target_commit == info.sha
assert api.list_repo_commits(repo)[0].commit_id == info.sha
print("ok: model_info, refs and commits", flush=True)

tree = {entry.path: entry for entry in api.list_repo_tree(repo, revision=info.sha, recursive=True)}
sizes = {path: entry.size for path, entry in tree.items() if hasattr(entry, "blob_id")}
assert sizes == {path: len(data) for path, data in expected.items()}
assert any(entry.lfs for entry in tree.values() if hasattr(entry, "blob_id"))
print(f"ok: list_repo_tree, {len(tree)} entries", flush=True)

same("huggingface_hub snapshot_download", snapshot_download(repo, cache_dir=f"{work}/hf-a"))
same("huggingface_hub snapshot_download by commit", snapshot_download(repo, revision=info.sha, local_dir=f"{work}/hf-b"))
some = {path: data for path, data in expected.items() if path.endswith(".json")}
same("huggingface_hub allow_patterns", snapshot_download(repo, cache_dir=f"{work}/hf-c", allow_patterns=["*.json"]), some)
for path in list(expected)[:5]:
    local = hf_hub_download(repo, path, revision="v1.0", cache_dir=f"{work}/hf-d")
    assert Path(local).read_bytes() == expected[path], path
print("ok: hf_hub_download", flush=True)
raises("a missing revision", RevisionNotFoundError, lambda: api.model_info(repo, revision="nope"))
raises("a missing repository", RepositoryNotFoundError, lambda: api.model_info("no/such"))

same("modelscope snapshot_download", modelscope_download(repo, cache_dir=f"{work}/ms-a"))
same("modelscope snapshot_download by tag", modelscope_download(repo, revision="v1.0", local_dir=f"{work}/ms-b"))

if gated:
    raises("a gated file", GatedRepoError, lambda: hf_hub_download(gated, list(expected)[0], cache_dir=f"{work}/hf-e"))
    same("huggingface_hub with a token", snapshot_download(gated, cache_dir=f"{work}/hf-f", token=token))
    same("modelscope with a token", modelscope_download(gated, local_dir=f"{work}/ms-c", token=token))
