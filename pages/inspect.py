"""Inspect: every layer of the model, what it holds and what it costs, and the graph."""

import streamlit as st

from app import columns, netron, state, tables, treemap
from app.components.data_table import data_table
from app.empty import nothing_yet
from app.figures import badge, show_figures
from app.plot import plot

now = state.current()
st.title("Inspect")
if now.model is None:
    nothing_yet("No model is open", "Open a sample or upload your own in the Library.")
    st.stop()

space = state.workspace()
card, profile = space.model_card(now.model), space.profile(now.model)
st.markdown(
    f"**{tables.plain(card.title)}** · input {'×'.join(map(str, card.input_shape))} · {len(card.classes)} classes"
)
show_figures(profile, space.baseline(now.model, now.data) if now.data else None)

st.subheader("Where it goes")
offered = {q.title: q for q in treemap.quantities(profile)}
chosen = st.segmented_control("Area of a rectangle", list(offered), default="Parameters", required=True, key="area")
badge("measured" if chosen == "Latency" else "exact")
plot(treemap.treemap(profile, offered[chosen]), "treemap")
st.caption("Each rectangle is a layer, inside the block it belongs to. Click a block to look inside.")

st.subheader("Layers")
data_table(columns.LAYERS, tables.layer_rows(profile), key="layers", alt="Every layer with its size and its cost")
st.caption(
    f"{len(profile.layers)} layers in order of execution. Together {tables.count(profile.params, 'parameters')}, "
    f"{tables.count(profile.macs, 'MACs')}, {tables.size(profile.activation_bytes)} of outputs; "
    f"at most {tables.size(profile.peak_bytes)} of them are in memory at once. Counted, except latency (measured)."
)

st.subheader("Graph")
if netron.LEASES.served:
    address = netron.graph_address(space.folder("models", now.model) / "model.onnx", f"{card.name}.onnx")
    st.iframe(address, height=640, alt=f"Graph of {card.title} in Netron")
    st.caption("Netron, on this computer. Click a node for its attributes; drag to move, scroll to zoom.")
else:
    st.info("The graph needs the studio's own server: start it with `cnn-studio`.", icon=":material/account_tree:")
