"""A server on loopback that answers like Google Cloud Storage (its JSON API), with seeded faults.

    with GcsServer(Faults(rate=0.2, seed=0)) as server:
        os.environ['STORAGE_EMULATOR_HOST'] = os.environ['TENSORSTORE_GCS_HTTP_URL'] = server.url

Objects are in memory, with generations and conditions on them. The bucket `denied` answers 403; of the others, only
those in `buckets` exist.
"""

import base64
import contextlib
import json
import random
import re
import struct
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import google_crc32c

KINDS = ('429', '500', '503', 'slow', 'dropped before', 'dropped after', 'cut')
"""An answer of that code; a pause; a connection closed before or after the work, or in the middle of an answer."""


class Faults:
    """Draws what goes wrong with each request.

    Args:
        rate: the share of requests with a fault.
        kinds: those of `KINDS` to draw from.
    """

    def __init__(self, rate=0.0, seed=0, kinds=KINDS, pause=0.2):
        self.rate, self.kinds, self.pause = rate, kinds, pause
        self._chance, self._lock = random.Random(seed), threading.Lock()
        self.counts = dict.fromkeys(KINDS, 0)

    def draw(self):
        with self._lock:
            if self._chance.random() >= self.rate:
                return None
            kind = self._chance.choice(self.kinds)
            self.counts[kind] += 1
            return kind


class GcsServer:
    """See the module. Attributes: `objects`, (bucket, name) -> (content, generation, time); `requests`, how many."""

    def __init__(self, faults=None, buckets=('bucket',)):
        self.faults, self.buckets = faults or Faults(), set(buckets)
        self.objects, self.sessions = {}, {}
        self.requests, self._generation = 0, 1000
        self.lock = threading.RLock()
        self._http = _Threads(('127.0.0.1', 0), type('Bound', (_Handler,), {'store': self}))
        self.url = f'http://127.0.0.1:{self._http.server_address[1]}'

    def __enter__(self):
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()

    def names(self, bucket='bucket'):
        """The names of all objects."""
        with self.lock:
            return sorted(name for where, name in self.objects if where == bucket)

    def read(self, name, bucket='bucket'):
        return self.objects[bucket, name][0]

    def put(self, bucket, name, content, query):
        with self.lock:
            self.check(bucket, name, query)
            self._generation += 1
            self.objects[bucket, name] = content, self._generation, time.time()
            return self.describe(bucket, name)

    def check(self, bucket, name, query):
        """Raises an `Answer` unless the conditions on the generation hold."""
        now = self.objects.get((bucket, name), (b'', 0))[1]
        if 'ifGenerationMatch' in query and int(query['ifGenerationMatch']) != now:
            raise Answer(412, 'conditionNotMet')
        if 'ifGenerationNotMatch' in query and int(query['ifGenerationNotMatch']) == now:
            raise Answer(304, '')

    def describe(self, bucket, name):
        content, generation, at = self.objects[bucket, name]
        crc = base64.b64encode(struct.pack('>I', google_crc32c.value(content))).decode()
        stamp = time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(at)) + '.000Z'
        fields = {'bucket': bucket, 'name': name, 'size': str(len(content)), 'generation': str(generation)}
        times = {'updated': stamp, 'timeCreated': stamp}
        return {'kind': 'storage#object', 'id': name, **fields, **times, 'metageneration': '1', 'crc32c': crc}


def use(server, monkeypatch):
    """Makes a test use the server, with short pauses."""
    from t5flan.files import gcs

    monkeypatch.setenv('STORAGE_EMULATOR_HOST', server.url)
    monkeypatch.setattr(gcs, 'FIRST_PAUSE', 0.01)
    monkeypatch.setattr(gcs, 'LONGEST_PAUSE', 0.05)
    monkeypatch.setattr(gcs, '_GRACE', 60.0)  # a busy machine stalls
    monkeypatch.setattr(gcs._Server, 'pid', 0)  # a new client


class Answer(Exception):
    """An answer that ends a request: a code and the reason."""


class _Threads(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """Clients that are killed drop their connections."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    store = None

    def log_message(self, *_):
        pass

    def _handle(self):
        body = self._body()
        if body is None:
            self.close_connection = True
            return
        with self.store.lock:
            self.store.requests += 1
        fault = self.store.faults.draw()
        if fault == 'slow':
            time.sleep(self.store.faults.pause)
        if fault == 'dropped before':
            self.close_connection = True
            return
        if fault in ('429', '500', '503'):
            self._answer(int(fault), {'error': {'code': int(fault), 'message': 'try again'}})
            return
        try:
            code, content, headers = self._work(body)
        except Answer as answer:
            code, reason = answer.args
            content, headers = {'error': {'code': code, 'message': reason, 'errors': [{'reason': reason}]}}, {}
        if fault == 'dropped after':
            self.close_connection = True
            return
        self._answer(code, content, headers, cut=fault == 'cut')

    do_GET = do_POST = do_PUT = do_DELETE = _handle

    def _body(self):
        """The body of the request; None if the client left in the middle of it."""
        if 'chunked' in self.headers.get('Transfer-Encoding', ''):
            body = b''
            while size := int(self.rfile.readline().split(b';')[0] or b'0', 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        size = int(self.headers.get('Content-Length') or 0)
        body = self.rfile.read(size)
        return body if len(body) == size else None

    def _answer(self, code, content, headers=None, cut=False):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        data = b'' if code in (204, 304, 308) else data
        self.send_response(code)
        for name, value in {'Content-Type': 'application/json', **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True

    # -- The API ------------------------------------------------------------------------------------------------------

    def _work(self, body):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        found = re.fullmatch(r'/(?:(upload|download)/)?storage/v1/b/([^/]+)(?:/o(?:/(.*))?)?', url.path)
        if found is None:
            raise Answer(404, f'no such path: {url.path}')
        kind, bucket, rest = found[1], urllib.parse.unquote(found[2]), found[3]
        if bucket == 'denied':
            raise Answer(403, 'caller does not have storage.objects.list access')
        if bucket not in self.store.buckets:
            raise Answer(404, 'The specified bucket does not exist.')
        if kind == 'upload':
            return self._upload(bucket, query, body)
        if rest is None:
            if url.path.endswith('/o'):
                return 200, self._list(bucket, query), {}
            return 200, {'kind': 'storage#bucket', 'name': bucket}, {}
        if '/rewriteTo/' in rest:
            return 200, self._rewrite(bucket, rest, query), {}
        return self._object(bucket, urllib.parse.unquote(rest), query)

    def _object(self, bucket, name, query):
        with self.store.lock:
            content, generation, _ = self.store.objects.get((bucket, name), (None, 0, 0))
            is_other = 'generation' in query and int(query['generation']) != generation
            if self.command == 'DELETE':
                self.store.check(bucket, name, query)
            if content is None or is_other:
                raise Answer(404, f'No such object: {bucket}/{name}')
            if self.command == 'DELETE':
                del self.store.objects[bucket, name]
                return 204, b'', {}
            self.store.check(bucket, name, query)
            described = self.store.describe(bucket, name)
        if query.get('alt') != 'media':
            return 200, described, {}
        headers = {
            'Content-Type': 'application/octet-stream',
            'X-Goog-Generation': str(generation),
            'X-Goog-Hash': f'crc32c={described["crc32c"]}',
            'X-Goog-Stored-Content-Encoding': 'identity',
        }
        wanted = re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range') or '')
        if not wanted:
            return 200, content, headers
        size = len(content)
        start = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
        end = min(int(wanted[2]) + 1, size) if wanted[1] and wanted[2] else size
        if start >= size:
            raise Answer(416, 'requestedRangeNotSatisfiable')
        return 206, content[start:end], {**headers, 'Content-Range': f'bytes {start}-{end - 1}/{size}'}

    def _list(self, bucket, query):
        prefix, delimiter = query.get('prefix', ''), query.get('delimiter')
        most = int(query.get('maxResults', 1000))
        items, prefixes, last = [], [], ''
        for name in self.store.names(bucket):
            after = name > query.get('pageToken', '') if query.get('pageToken') else True
            inside = query.get('startOffset', '') <= name and (not query.get('endOffset') or name < query['endOffset'])
            if not (name.startswith(prefix) and after and inside):
                continue
            head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ('', '', '')
            if found:
                if prefix + head + delimiter not in prefixes:
                    prefixes.append(prefix + head + delimiter)
            elif len(items) == most:
                return {'kind': 'storage#objects', 'items': items, 'prefixes': prefixes, 'nextPageToken': last}
            else:
                with self.store.lock, contextlib.suppress(KeyError):  # removed meanwhile
                    items.append(self.store.describe(bucket, name))
                last = name
        return {'kind': 'storage#objects', 'items': items, 'prefixes': prefixes}

    def _rewrite(self, bucket, rest, query):
        source, _, target = rest.partition('/rewriteTo/b/')
        where, _, name = target.partition('/o/')
        with self.store.lock:
            content = self.store.objects.get((bucket, urllib.parse.unquote(source)))
            if content is None:
                raise Answer(404, 'No such object')
            described = self.store.put(where, urllib.parse.unquote(name), content[0], query)
        size = described['size']
        sizes = {'totalBytesRewritten': size, 'objectSize': size}
        return {'kind': 'storage#rewriteResponse', 'done': True, **sizes, 'resource': described}

    def _upload(self, bucket, query, body):
        kind = query.get('uploadType')
        if kind == 'media':
            return 200, self.store.put(bucket, query['name'], body, query), {}
        if kind == 'multipart':
            boundary = re.search(r'boundary="?([^";]+)', self.headers['Content-Type'])[1].encode()
            fields, content = body.split(b'--' + boundary)[1:3]
            described = json.loads(fields.partition(b'\r\n\r\n')[2])
            content = content.partition(b'\r\n\r\n')[2].removesuffix(b'\r\n')
            name = query.get('name') or described['name']
            self._compare(content, described)
            return 200, self.store.put(bucket, name, content, query), {}
        if self.command == 'POST':
            described = json.loads(body or b'{}')
            session = f's{len(self.store.sessions)}'
            self.store.sessions[session] = [query.get('name') or described['name'], b'', query, described]
            where = f'{self.store.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={session}'
            return 200, b'{}', {'Location': where}
        return self._continue(bucket, query['upload_id'], body)

    def _continue(self, bucket, session, body):
        given = re.fullmatch(r'bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)', self.headers['Content-Range'])
        with self.store.lock:
            known = self.store.sessions[session]
            if len(known) == 5:  # complete
                return 200, known[4], {}
            name, content, query, described = known
            if given[1] is not None and int(given[1]) <= len(content):
                known[1] = content = content[: int(given[1])] + body
            if given[3] == '*' or len(content) < int(given[3]):
                return 308, b'', {'Range': f'bytes=0-{len(content) - 1}'} if content else {}
            known.append(self.store.put(bucket, name, content, query))
            return 200, known[4], {}

    def _compare(self, content, described):
        crc = base64.b64encode(struct.pack('>I', google_crc32c.value(content))).decode()
        if described.get('crc32c') not in (None, crc):
            raise Answer(400, 'the checksum differs')
