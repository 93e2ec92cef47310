"""The example's API: `/health`, and `/users` as JSON."""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg


def ask(sql: str) -> list[tuple]:
    with psycopg.connect(os.environ["DATABASE_URL"], connect_timeout=3, application_name="api") as connection:
        return connection.execute(sql).fetchall()


class Api(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        try:
            if self.path == "/health":
                ask("select 1")
                self.answer(200, "ok")
            elif self.path == "/users":
                self.answer(200, json.dumps([name for (name,) in ask("select name from users order by id limit 20")]))
            else:
                self.answer(404, "there are /health and /users")
        except psycopg.Error as error:
            print(f"database: {error}", file=sys.stderr)
            self.answer(503, "the database does not answer")

    def answer(self, status: int, text: str) -> None:
        body = f"{text}\n".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("", 8000), Api).serve_forever()
