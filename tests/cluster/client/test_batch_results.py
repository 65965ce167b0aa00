"""Results of a batch file are gone on with: after an interruption, and where they are errors."""

from __future__ import annotations

import io
import json

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.client.batch_results import put_in_place, results_of
from cluster.client.errors import BadRequestError, ClientError
from cluster.errors import BiremeError
from tests.cluster.client.test_batch_file import Asked, request


def test_an_interrupted_output_is_gone_on_with_and_another_is_refused(tmp_path):
    requests, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    requests.write_bytes(b"\n".join(request(str(i)) for i in range(3)))
    whole = (
        b'{"custom_id": "0", "response": {"status_code": 200}, "error": null}\n'
        b'{"custom_id": "1", "response": {"status_code": 400}, "error": null}\n'
    )
    output.write_bytes(whole + b'{"custom_')
    assert results_of(requests, output) == (2, (1,))
    assert output.read_bytes() == whole
    for other in (whole.splitlines(keepends=True)[1], b"something else\n", b"[]\n", output.read_bytes() * 2):
        output.write_bytes(other)
        with pytest.raises(BiremeError, match="is no result of these requests"):
            results_of(requests, output)
        assert output.read_bytes() == other


def line(custom_id: str | None, text: str, status: int = 200) -> bytes:
    response = {"status_code": status, "body": {"text": text}}
    return json.dumps({"custom_id": custom_id, "response": response, "error": None}).encode() + b"\n"


@pytest.mark.parametrize("num_again", [0, 1, 2])
def test_results_take_the_place_of_errors_as_far_as_they_came(tmp_path, num_again):
    output = tmp_path / "out.jsonl"
    output.write_bytes(line("a", "1") + line("b", "full", 503) + line("c", "3") + line("d", "full", 503))
    output.chmod(0o640)
    (tmp_path / "link").symlink_to(output)
    newer = [line("b", "2"), line("d", "4")][:num_again]
    put_in_place(tmp_path / "link", (1, 3), io.BytesIO(b"".join(newer) + b'{"custom'))
    texts = [json.loads(row)["response"]["body"]["text"] for row in output.read_bytes().splitlines()]
    assert texts == ["1", "2" if num_again else "full", "3", "4" if num_again > 1 else "full"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out.jsonl"]
    assert output.stat().st_mode & 0o777 == 0o640


@pytest.fixture
def asked(monkeypatch) -> Asked:
    """In the place of the client of the command."""

    class Client(Asked):
        def __init__(self) -> None:
            super().__init__()
            self.prompts: list[int] = []

        def __call__(self, *_, **__):
            return self

        async def __aenter__(self):
            return self

        async def __aexit__(self, *_):
            return None

        async def complete(self, prompt: int, **options):
            self.prompts.append(prompt)
            return await super().complete(prompt, **options)

    client = Client()
    monkeypatch.setattr("cluster.terminal.run_batch.AsyncClient", client)
    return client


def test_the_same_command_sends_lines_with_errors_again_also_corrected_ones(tmp_path, asked):
    file, results = tmp_path / "in.jsonl", tmp_path / "in.results.jsonl"
    file.write_bytes(b"\n".join([request("a", prompt=1), request("b", prompt=2), b"{", request("d", prompt=4)]))
    asked.errors = {2: [BadRequestError("too long", status=400)]}

    def run() -> tuple[int, list[int], list[tuple[str | None, bool]]]:
        asked.prompts.clear()
        code = CliRunner().invoke(app, ["run-batch", str(file)]).exit_code
        rows = [json.loads(row) for row in results.read_bytes().splitlines()]
        return (
            code,
            sorted(asked.prompts),
            [(r["custom_id"], (r["response"] or {}).get("status_code") == 200) for r in rows],
        )

    assert run() == (1, [1, 2, 4], [("a", True), ("b", False), (None, False), ("d", True)])
    whole = results.read_bytes().splitlines()
    file.write_bytes(
        b"\n".join([request("a", prompt=1), request("b", prompt=5), request("c", prompt=3), request("d", prompt=4)])
    )
    # The server goes away in between: what came until then is kept, and the rest stays as it was.
    asked.errors = {3: [ClientError("no answer")]}
    assert run() == (1, [3, 5], [("a", True), ("b", True), (None, False), ("d", True)])
    file.write_bytes(file.read_bytes() + b"\n" + request("e", prompt=6))
    assert run() == (0, [3, 6], [(name, True) for name in "abcde"])
    assert [results.read_bytes().splitlines()[i] for i in (0, 3)] == [whole[0], whole[3]]
    assert run() == (0, [], [(name, True) for name in "abcde"])
