"""The library in this process: what Triton's answers are compared with."""

import ctypes
import json
import time

from server import DEMO, TARGET


class Options(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("endpoint", ctypes.c_int32), ("max_choices", ctypes.c_uint32),
                ("max_prompt_tokens", ctypes.c_uint32), ("max_tokens", ctypes.c_uint32), ("model", ctypes.c_char_p)]


class Status(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("state", ctypes.c_int32), ("streams", ctypes.c_int32),
                ("prompt_tokens", ctypes.c_uint64), ("completion_tokens", ctypes.c_uint64)]


class Library:
    """An engine whose requests are decoded here."""

    def __init__(self, config=DEMO / "engine.json"):
        self.library = ctypes.CDLL(str(TARGET / "triton" / "backends" / "cos" / "libcos.so.0"))
        self.library.cos_error_message.restype = ctypes.c_char_p
        for name in ("engine_open", "request_new", "request_step_many", "request_answer"):
            getattr(self.library, f"cos_{name}").restype = ctypes.c_void_p
        self.engine = ctypes.c_void_p()
        self._check(self.library.cos_engine_open(str(config).encode(), ctypes.byref(self.engine)))

    def _check(self, error):
        if error:
            raise AssertionError(self.library.cos_error_message(ctypes.c_void_p(error)).decode())

    def answers(self, bodies):
        """The answers to bodies, decoded in common passes, and the seconds that it took."""
        requests = (ctypes.c_void_p * len(bodies))()
        for i, body in enumerate(bodies):
            options = Options(ctypes.sizeof(Options), 1 if "messages" in body else 0, 0, 0, 0, None)
            text, request = json.dumps(body).encode(), ctypes.c_void_p()
            self._check(self.library.cos_request_new(self.engine, ctypes.byref(options), text, len(text),
                                                     ctypes.byref(request)))
            requests[i] = request.value
        answers, start, open_ = [None] * len(bodies), time.monotonic(), list(range(len(bodies)))
        while open_:
            running = (ctypes.c_void_p * len(open_))(*(requests[i] for i in open_))
            statuses = (Status * len(open_))(*(Status(ctypes.sizeof(Status)) for _ in open_))
            errors = (ctypes.c_void_p * len(open_))()
            self._check(self.library.cos_request_step_many(running, ctypes.c_size_t(len(open_)), statuses, errors))
            for i, status, error in zip(list(open_), statuses, errors):
                self._check(error)
                if status.state:
                    text, size = ctypes.c_void_p(), ctypes.c_size_t()
                    self._check(self.library.cos_request_answer(ctypes.c_void_p(requests[i]), ctypes.byref(text),
                                                                ctypes.byref(size)))
                    answers[i] = json.loads(ctypes.string_at(text, size.value))
                    open_.remove(i)
        seconds = time.monotonic() - start
        for request in requests:
            self.library.cos_request_free(ctypes.c_void_p(request))
        return answers, seconds

    def answer(self, **body):
        return self.answers([body])[0][0]
