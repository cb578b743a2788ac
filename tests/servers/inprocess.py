"""The same completions without a server: libcos.so called by this process. What servers are measured against."""

import contextlib
import ctypes
import os

from server import DEMO, ROOT

STRATEGIES = ["auto", "standard", "speculative", "cos"]  # by number

LIBRARY = os.path.join(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"), "release", "libcos.so")


class Options(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("strategy", ctypes.c_int32), ("temperature", ctypes.c_float),
                ("top_k", ctypes.c_int32), ("top_p", ctypes.c_float), ("min_p", ctypes.c_float),
                ("seed", ctypes.c_uint64), ("max_tokens", ctypes.c_uint32), ("proposal_lengths", ctypes.c_void_p),
                ("proposal_lengths_count", ctypes.c_size_t),
                ("weights", ctypes.c_void_p), ("weights_count", ctypes.c_size_t),
                ("stop_tokens", ctypes.c_void_p), ("stop_tokens_count", ctypes.c_size_t)]


class StepResult(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("tokens", ctypes.POINTER(ctypes.c_int32)),
                ("tokens_count", ctypes.c_size_t), ("finish", ctypes.c_int32), ("reserved", ctypes.c_int32)]


class Stats(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("steps", ctypes.c_uint64), ("tokens", ctypes.c_uint64),
                ("others", ctypes.c_uint64 * 7)]


class InProcess:
    """An engine with the two methods of a Server that are measured."""

    def __init__(self, config=DEMO):
        self.library = ctypes.CDLL(LIBRARY)
        self.library.cos_error_message.restype = ctypes.c_char_p
        self.engine = ctypes.c_void_p()
        self._call("cos_engine_open", str(config).encode(), ctypes.byref(self.engine))

    def _call(self, name, *arguments):
        function = self.library[name]
        function.restype = ctypes.c_void_p
        if error := function(*arguments):
            raise RuntimeError(self.library.cos_error_message(ctypes.c_void_p(error)).decode())

    def tokens(self):
        stats = Stats(ctypes.sizeof(Stats))
        self._call("cos_engine_stats", self.engine, ctypes.byref(stats))
        return stats.tokens

    def complete(self, prompt, max_tokens, temperature, seed, strategy=0):
        text, capacity = prompt.encode(), len(prompt) + 16
        tokens, count = (ctypes.c_int32 * capacity)(), ctypes.c_size_t()
        self._call("cos_engine_encode", self.engine, text, ctypes.c_size_t(len(text)), 1, tokens,
                   ctypes.c_size_t(capacity), ctypes.byref(count))
        options = Options(ctypes.sizeof(Options), strategy, temperature, seed=seed, max_tokens=max_tokens)
        session, stream = ctypes.c_void_p(), ctypes.c_void_p()
        piece, size = ctypes.c_char_p(), ctypes.c_size_t()
        step = StepResult(ctypes.sizeof(StepResult))
        with contextlib.ExitStack() as stack:
            self._call("cos_session_new", self.engine, ctypes.byref(options), ctypes.byref(session))
            stack.callback(self.library.cos_free, session)
            self._call("cos_text_stream_new", self.engine, ctypes.byref(stream))
            stack.callback(self.library.cos_text_stream_free, stream)
            self._call("cos_prompt", session, tokens, count)
            while not step.finish:
                self._call("cos_step", session, ctypes.byref(step))
                self._call("cos_text_stream_push", stream, step.tokens, ctypes.c_size_t(step.tokens_count),
                           ctypes.byref(piece), ctypes.byref(size))
