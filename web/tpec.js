// Shows the report of the pack's nodes as text on the node. Everything here is also in the STRING outputs.
import { app } from "../../scripts/app.js";

const WIDGET = "tpec_text";
const PREFIX = "TPEC";

function textWidget(node) {
  const present = node.widgets?.find((widget) => widget.name === WIDGET);
  if (present) return present;
  const area = document.createElement("textarea");
  area.readOnly = true;
  area.spellcheck = false;
  area.wrap = "off";
  Object.assign(area.style, {
    width: "100%",
    height: "100%",
    resize: "none",
    fontFamily: "monospace",
    fontSize: "11px",
    color: "var(--input-text)",
    background: "var(--comfy-input-bg)",
    border: "1px solid var(--border-color)",
  });
  const widget = node.addDOMWidget(WIDGET, "tpec_text", area, {
    getValue: () => area.value,
    setValue: (value) => {
      area.value = value ?? "";
    },
    getMinHeight: () => 130,
    serialize: false,
    hideOnZoom: true,
  });
  // The option keeps the text out of the prompt, the property out of the saved workflow.
  widget.serialize = false;
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width, 380), Math.max(node.size[1], height)]);
  return widget;
}

app.registerExtension({
  name: "tpec-fp8.text",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith(PREFIX)) return;
    const earlier = node.onExecuted;
    node.onExecuted = function (output) {
      earlier?.apply(this, arguments);
      if (output?.text) textWidget(this).value = [].concat(output.text).join("\n");
    };
  },
});
