"""A stand-in for the Hugging Face hub: serves the data sets of a folder on loopback, as far as `datasets` asks."""

import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

SHA = 'a' * 40
_INFO = re.compile(r'/api/datasets/([^/]+/[^/]+?)(?:/revision/([^/]+))?$')
_TREE = re.compile(r'/api/datasets/([^/]+/[^/]+?)/tree/[^/]+/?(.*)$')
_PATHS = re.compile(r'/api/datasets/([^/]+/[^/]+?)/paths-info/[^/]+$')
_FILE = re.compile(r'/datasets/([^/]+/[^/]+?)/resolve/[^/]+/(.*)$')


class _Handler(http.server.BaseHTTPRequestHandler):
    root: Path
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get('content-length', 0)))
        if found := _PATHS.match(urlsplit(self.path).path):
            wanted = json.loads(body)['paths'] if body.startswith(b'{') else re.findall(r'paths=([^&]*)', body.decode())
            entries = {entry['path']: entry for entry in self._entries(found[1])}
            return self._json([entries[unquote(path)] for path in wanted if unquote(path) in entries])
        return self._missing('EntryNotFound')

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := _FILE.match(path):
            if found[1].endswith('/locked'):  # as the hub does it: anyone may ask about a gated data set
                return self._missing('GatedRepo', 403)
            if found[1].endswith('/broken'):
                return self._missing('', 503)
            file = self.root / found[1] / found[2]
            if file.is_file():
                return self._send(file.read_bytes(), with_body, 'application/octet-stream')
            return self._missing('EntryNotFound')
        if found := _TREE.match(path):
            return self._json(self._entries(found[1]))
        if found := _INFO.match(path):
            if found[1].endswith('/gated'):
                return self._missing('GatedRepo', 403)
            if not (self.root / found[1]).is_dir():
                return self._missing('RepoNotFound')
            if found[2] not in (None, 'main', SHA):
                return self._missing('RevisionNotFound')
            files = [{'rfilename': entry['path']} for entry in self._entries(found[1])]
            return self._json(
                {'id': found[1], 'sha': SHA, 'siblings': files, 'private': False, 'gated': False, 'tags': []}
            )
        return self._missing('EntryNotFound')

    def _entries(self, name: str) -> list[dict]:
        folder = self.root / name
        files = [path for path in sorted(folder.rglob('*')) if path.is_file()]
        return [
            {'type': 'file', 'path': str(path.relative_to(folder)), 'size': path.stat().st_size, 'oid': _oid(path)}
            for path in files
        ]

    def _json(self, value: object) -> None:
        self._send(json.dumps(value).encode(), True, 'application/json')

    def _send(self, data: bytes, with_body: bool, kind: str) -> None:
        total, status = len(data), 200
        if asked := re.match(r'bytes=(\d+)-(\d*)', self.headers.get('range', '')):
            start, end = int(asked[1]), int(asked[2] or total - 1)
            data, status = data[start : end + 1], 206
        self.send_response(status)
        if status == 206:
            self.send_header('Content-Range', f'bytes {start}-{start + len(data) - 1}/{total}')
        self.send_header('Content-Type', kind)
        self.send_header('Content-Length', str(len(data)))
        self.send_header('Accept-Ranges', 'bytes')
        self.send_header('ETag', f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header('X-Repo-Commit', SHA)
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def _missing(self, code: str, status: int = 404) -> None:
        self.send_response(status)
        self.send_header('X-Error-Code', code)
        self.send_header('Content-Length', '0')
        self.end_headers()


def _oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def hub(root: Path) -> Iterator[str]:
    """Serves `root/OWNER/NAME/...` as data sets; yields the address for HF_ENDPOINT."""
    handler = type('Handler', (_Handler,), {'root': root})
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f'http://127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
