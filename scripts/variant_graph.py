"""Changes the graph of an ONNX model, for export_variants.py."""

from itertools import chain
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


class Graph:
    """A model that is being changed. Values have names. `inputs` and `outputs` map names to (type, shape)."""

    def __init__(self, model):
        self.model = model
        self.made = 0
        self.nodes = list(self.model.graph.node)
        self.weights = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.embeddings = next(node.input[0] for node in self.nodes
                               if node.op_type == "Gather" and node.input[1] == "input_ids")
        self.inputs, self.outputs = (
            {value.name: (value.type.tensor_type.elem_type,
                          [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim])
             for value in values} for values in (self.model.graph.input, self.model.graph.output))

    def node(self, kind: str, *inputs, out=None, **attributes) -> str:
        """Add a node, in any order. Inputs that are not names become constants. Returns the name of the output."""
        self.made += 1
        names = [value if isinstance(value, str) else f"constant.{self.made}.{i}" for i, value in enumerate(inputs)]
        for name, value in zip(names, inputs):
            if name is not value:
                array = np.asarray(value, None if isinstance(value, np.ndarray) else np.int64)
                self.weights[name] = numpy_helper.from_array(array, name)
        out = out or f"value.{self.made}"
        self.nodes.append(helper.make_node(kind, names, [out], **attributes))
        return out

    def producer(self, name: str):
        return next(node for node in self.nodes if name in node.output)

    def reader(self, name: str):
        return next(node for node in self.nodes if name in node.input)

    def only(self, kind: str):
        (node,) = [node for node in self.nodes if node.op_type == kind]
        return node

    def reroute(self, name: str, other: str):
        """Make all nodes that read one value read the other."""
        for node in self.nodes:
            node.input[:] = [other if value == name else value for value in node.input]

    def detach(self, name: str) -> str:
        """Give the value of an input or output another name, and return it. The caller must connect the two again."""
        inner = self.intercept(name) if name in self.outputs else self.inner(name)
        self.reroute(name, inner)
        return inner

    def inner(self, name: str) -> str:
        self.made += 1
        return f"{name}.inner.{self.made}"

    def intercept(self, name: str) -> str:
        """Make the producer of a value write to another name, and return it. Readers still read the old name."""
        node, inner = self.producer(name), self.inner(name)
        node.output[:] = [inner if value == name else value for value in node.output]
        return inner

    def drop(self, name: str, **others) -> str:
        """Remove an input, or replace it by others. Returns the name of the value that must be produced now."""
        items = [[(key, what)] if key != name else others.items() for key, what in self.inputs.items()]
        self.inputs = dict(chain(*items))
        return self.detach(name)

    def caches(self):
        """All pairs (past, present)."""
        pasts = [name for name in self.inputs if name.startswith("past_key_values")]
        return [(past, past.replace("past_key_values", "present")) for past in pasts]

    def reshape(self, past: str, present: str, change):
        """Declare another shape for both ends of a cache."""
        for border, name in ((self.inputs, past), (self.outputs, present)):
            border[name] = FLOAT, change(*border[name][1])

    def length(self) -> str:
        """The number of new tokens, with the shape [1]."""
        return self.node("Shape", "input_ids", start=1, end=2)

    def past_length(self) -> str:
        return self.node("Shape", "past_key_values.0.key", start=2, end=3)

    def new_and_all_places(self):
        """The two Range nodes that the causal mask compares: the new tokens' places in the cache, and all places."""
        causal = self.only("LessOrEqual")
        found = []
        for name in (causal.input[1], causal.input[0]):
            while self.producer(name).op_type != "Range":
                name = self.producer(name).input[0]
            found.append(self.producer(name))
        return found

    def save(self, file: Path, **options):
        """Write the nodes that the outputs need, with short names, and each constant once."""
        makers = {name: node for node in self.nodes for name in node.output}
        order, constants, short = [], {}, {}

        def visit(name):
            if name in short or name not in makers:
                return
            node = makers[name]
            for value in node.input:
                visit(value)
            content = node.attribute[0].SerializeToString() if node.op_type == "Constant" else None
            if content in constants:
                short[name] = constants[content]
                return
            for value in node.output:
                short[value] = value if value in self.outputs else f"v{len(short)}"
            if content:
                constants[content] = short[name]
            order.append(node)

        for name in self.outputs:
            visit(name)
        for node in order:
            node.ClearField("name")
            node.input[:] = [short.get(name, name) for name in node.input]
            node.output[:] = [short[name] for name in node.output]
        used = {name for node in order for name in node.input}
        graph = helper.make_graph(
            order, "main_graph", *([helper.make_tensor_value_info(name, *what) for name, what in border.items()]
                                   for border in (self.inputs, self.outputs)),
            [tensor for name, tensor in self.weights.items() if name in used])
        self.model.graph.CopyFrom(graph)
        onnx.save(self.model, file, **options)
        onnx.checker.check_model(file, full_check=True)
