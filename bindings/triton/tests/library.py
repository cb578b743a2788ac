"""The library in this process: what Triton's answers are compared with."""

import ctypes
import json

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
        for name in ("engine_open", "request_new", "request_step", "request_answer"):
            getattr(self.library, f"cos_{name}").restype = ctypes.c_void_p
        self.engine = ctypes.c_void_p()
        self._check(self.library.cos_engine_open(str(config).encode(), ctypes.byref(self.engine)))

    def _check(self, error):
        if error:
            raise AssertionError(self.library.cos_error_message(ctypes.c_void_p(error)).decode())

    def answer(self, **body):
        """The answer to a body."""
        options = Options(ctypes.sizeof(Options), 1 if "messages" in body else 0, 0, 0, 0, None)
        text, request = json.dumps(body).encode(), ctypes.c_void_p()
        self._check(self.library.cos_request_new(self.engine, ctypes.byref(options), text, len(text),
                                                 ctypes.byref(request)))
        try:
            status = Status(ctypes.sizeof(Status))
            while not status.state:
                self._check(self.library.cos_request_step(request, ctypes.byref(status)))
            answer, size = ctypes.c_void_p(), ctypes.c_size_t()
            self._check(self.library.cos_request_answer(request, ctypes.byref(answer), ctypes.byref(size)))
            return json.loads(ctypes.string_at(answer, size.value))
        finally:
            self.library.cos_request_free(request)
