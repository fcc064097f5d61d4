"""Write the graphs of live streams in ONNX Runtime (`codec/live.py`) for a shipped codec, after its weights change.

    python tools/live_graphs.py general-24k         codec/weights/general-24k.encoder.onnx and .decoder.onnx

Both are exported and verified as by `codec export`. Their weights are then left out: each is a reference to the bytes
in the .safetensors file beside them, so the package does not hold them twice.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from codec import live, pretrained
from codec.export import onnx as export
from codec.io.storage import atomic_output

OPSET = 20  # the first with GELU as one operator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="*", default=[pretrained.DEFAULT], help="names of shipped codecs")
    for name in parser.parse_args().model:
        model = export.exportable(pretrained.load(name, "cpu"))
        graphs = {"encoder": export.encoder_graph(model, OPSET), "decoder": export.decoder_graph(model, OPSET)}
        codes, near_ties, error = export.verify(model, graphs["encoder"], graphs["decoder"])
        print(f"{name}: {codes} codes compared, {len(near_ties)} near-ties, audio within {error:.0e}")
        for graph, content in graphs.items():
            with atomic_output(live.graph_file(name, graph), force=True) as file:
                file.write(without_weights(content, live.WEIGHTS / f"{name}.safetensors"))


def without_weights(graph: bytes, weights: Path) -> bytes:
    """The graph with references to the bytes of a .safetensors file that will be beside it."""
    import onnx
    from onnx import helper, numpy_helper
    from onnx.external_data_helper import set_external_data

    places = stored_tensors(weights)
    proto: Any = onnx.load_from_string(graph)
    transposes = []  # which the exporter did before it stored the weights
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.data_type != onnx.TensorProto.FLOAT16:
            continue
        if array.ndim == 2 and array.tobytes() not in places and array.T.tobytes() in places:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(array.T, f"{name}_stored"))
            transposes.append(helper.make_node("Transpose", [tensor.name], [name], perm=[1, 0]))
        if (offset := places.get(tensor.raw_data)) is not None:
            set_external_data(tensor, weights.name, offset=offset, length=len(tensor.raw_data))
            tensor.ClearField("raw_data")
    nodes = [*transposes, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    content: bytes = proto.SerializeToString()
    return content


def stored_tensors(path: Path) -> dict[bytes, int]:
    """The content of each tensor of a .safetensors file, and where it begins."""
    content = path.read_bytes()
    first = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:first])
    spans = [one["data_offsets"] for name, one in header.items() if name != "__metadata__"]
    return {content[first + start : first + end]: first + start for start, end in spans}


if __name__ == "__main__":
    main()
