"""A stand-in that speaks as much of a WebUI's API as the `webui` backend asks for; its pictures are fixed ones.

As a program: ``standin.py PORT LOG [--sha256 …] [--auth user:password] [--seconds S] [--hang-after N]
[--change-after N]``. Every picture that it has sent is a line of LOG: prompt, seed and loss ("" when plain).
While LOG.bare is there, the extension is not.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

SAMPLERS = ("DPM++ 2M", "Euler")
"""Its own; for another name it takes the first, as WebUIs do."""
SHA256 = "71af53dcd6" + "0" * 54


def picture(prompt: str, seed: int, loss: str) -> Image.Image:
    digest = hashlib.sha256(f"{prompt}|{seed}|{loss}".encode()).digest()
    return Image.new("RGB", (16, 16), tuple(digest[:3]))


class Handler(BaseHTTPRequestHandler):
    how: argparse.Namespace
    sent = 0

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, body: Any, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def let_in(self) -> bool:
        wanted = "Basic " + base64.b64encode(self.how.auth.encode()).decode()
        if self.how.auth and self.headers.get("Authorization") != wanted:
            self.answer({"detail": "Incorrect username or password"}, 401)
            return False
        return True

    def sha256(self) -> str:
        changed = self.how.change_after is not None and type(self).sent >= self.how.change_after
        return "f" * 64 if changed else self.how.sha256

    def do_GET(self) -> None:
        if not self.let_in():
            return
        known = "" if self.how.not_loaded else self.how.sha256
        title = f"tiny.safetensors [{known[:10]}]" if known else "tiny.safetensors"
        found = {
            "/sdapi/v1/options": {
                "sd_model_checkpoint": title, "sd_checkpoint_hash": known, **dict.fromkeys(self.how.option),
            },
            "/sdapi/v1/sd-models": [{"title": title, "model_name": "tiny", "sha256": known or None, "hash": None}],
            "/sdapi/v1/schedulers": [{"name": "karras", "label": "Karras", "aliases": None}],
            "/decouple/v1/schema": None if Path(f"{self.how.log}.bare").exists() else {},
        }.get(self.path)  # fmt: skip
        self.answer({"detail": "Not Found"} if found is None else found, 404 if found is None else 200)

    def do_POST(self) -> None:
        if not self.let_in():
            return
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/decouple/v1/tokens":
            words = body["prompt"].split()
            entities = [
                {"text": e.strip(), "words": [words.index(e.strip())] if e.strip() in words else [],
                 "problem": "" if e.strip() in words else f"entities: {e.strip()} is not in the prompt"}
                for e in body["entities"].split(",")
            ]  # fmt: skip
            self.answer({"words": [{"tokens": [k + 1]} for k in range(len(words))], "entities": entities})
            return
        ours = body.get("alwayson_scripts", {}).get("Attention Decoupling", {"args": [{}]})["args"][0]
        loss = ours.get("loss", "") if ours.get("enabled") else ""
        if loss == "kl":
            self.answer({"detail": "Attention Decoupling: loss: not here"}, 422)
            return
        if body["steps"] > 3:  # less is the backend's own try
            if self.how.hang_after is not None and type(self).sent >= self.how.hang_after:
                time.sleep(3600)
            time.sleep(self.how.seconds)
            type(self).sent += 1
        data = io.BytesIO()
        picture(body["prompt"], body["seed"], loss).save(data, "PNG")
        text = f"{body['prompt']}\nSteps: {body['steps']}, Seed: {body['seed']}, Version: {self.how.version}"
        if loss:
            text += f', Decouple: 1, Decouple found: "{", ".join(ours["entities"])}"'
            text += ", Decouple IoU by update: 0.620 to 0.310 at step 1"
        info = {
            "infotexts": [text], "version": self.how.version,
            "sd_model_hash": self.sha256()[:10], "sd_model_name": "tiny",
            "sampler_name": body["sampler_name"] if body["sampler_name"] in SAMPLERS else SAMPLERS[0],
        }  # fmt: skip
        self.answer({"images": [base64.b64encode(data.getvalue()).decode()], "info": json.dumps(info)})
        if body["steps"] > 3:
            with open(self.how.log, "a") as file:
                file.write(json.dumps([body["prompt"], body["seed"], loss]) + "\n")


class StandIn:
    """The program as a process of its own, so that it can be killed."""

    def __init__(self, log: Path, *options: str) -> None:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        self.log, self.url = log, f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen([sys.executable, __file__, str(port), str(log), *options])
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self.url}/nothing", timeout=5)
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the stand-in did not start")

    @property
    def sent(self) -> list[Any]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("log")
    parser.add_argument("--sha256", default=SHA256)
    parser.add_argument("--version", default="v1.10.1")
    parser.add_argument("--option", action="append", default=[], help="one more of those that it can be set to")
    parser.add_argument("--not-loaded", action="store_true")
    parser.add_argument("--auth", default="")
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--hang-after", type=int)
    parser.add_argument("--change-after", type=int)
    Handler.how = parser.parse_args()
    ThreadingHTTPServer(("127.0.0.1", Handler.how.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
