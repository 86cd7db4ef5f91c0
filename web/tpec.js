// Shows progress and results of the pack's nodes as text on the node, and keeps the result in the saved workflow.
// Everything here is also in the STRING outputs.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const WIDGET = "tpec_text";
// A property travels with the workflow (tabs, reloads, files) and never gets into a prompt.
const PROPERTY = "tpec_text";
const PREFIX = "TPEC";
const LINE = 16;
const HEIGHTS = { least: 40, most: 260 };

function isOurs(node) {
  return node?.comfyClass?.startsWith(PREFIX);
}

// Ids of nodes in subgraphs are a path: "5:3" is node 3 in the subgraph of node 5.
function nodeAt(path) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const id of String(path).split(":")) {
    node = graph?.getNodeById(Number(id)) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

// Outputs are kept by locator: "3" in the main graph, "<id of the subgraph>:3" in one.
function nodeLocated(locator) {
  const parts = String(locator).split(":");
  if (parts.length === 1) return nodeAt(locator);
  return app.rootGraph?.subgraphs?.get(parts[0])?.getNodeById(Number(parts[1])) ?? null;
}

function textBox() {
  const box = document.createElement("div");
  box.className = "tpec-text";
  Object.assign(box.style, {
    boxSizing: "border-box",
    width: "100%",
    height: "100%",
    overflow: "auto",
    padding: "6px 8px",
    borderRadius: "6px",
    fontFamily: "var(--font-inter, Inter, sans-serif)",
    fontSize: "12px",
    lineHeight: `${LINE}px`,
    whiteSpace: "pre-wrap",
    overflowWrap: "anywhere",
    userSelect: "text",
    color: "var(--input-text)",
    background: "var(--comfy-input-bg)",
  });
  return box;
}

// The first line is what matters most.
function fill(box, text) {
  const [head, ...rest] = String(text).split("\n");
  const first = document.createElement("div");
  first.style.fontWeight = "600";
  first.textContent = head;
  const more = document.createElement("div");
  more.textContent = rest.join("\n");
  box.replaceChildren(first, more);
}

function heightFor(node, text) {
  const columns = Math.max(20, (node.size[0] - 50) / 6.4);
  const lines = String(text)
    .split("\n")
    .reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / columns)), 0);
  return Math.min(HEIGHTS.most, Math.max(HEIGHTS.least, lines * LINE + 36));
}

function textWidget(node) {
  const present = node.widgets?.find((widget) => widget.name === WIDGET);
  if (present) return present;
  const box = textBox();
  let shown = "";
  const widget = node.addDOMWidget(WIDGET, "tpec_text", box, {
    getValue: () => shown,
    setValue: (value) => {
      shown = value ?? "";
      fill(box, shown);
    },
    getMinHeight: () => heightFor(node, shown),
    serialize: false,
    hideOnZoom: true,
    hideInPanel: true, // it is no input
  });
  // The option keeps the text out of the prompt, the property out of the widgets' values, which go by position.
  widget.serialize = false;
  // Panels that draw it all the same leave their width behind; without one it is as wide as its node.
  Object.defineProperty(widget, "width", { configurable: true, get: () => undefined, set() {} });
  return widget;
}

function show(node, text) {
  textWidget(node).value = text;
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width, 320), Math.max(node.size[1], height)]);
  node.setDirtyCanvas?.(true, true);
}

function hide(node) {
  const widget = node.widgets?.find((one) => one.name === WIDGET);
  if (widget) node.removeWidget(widget);
}

// What was there before a run that failed or was cancelled.
function restore(node) {
  const text = node.properties?.[PROPERTY];
  if (text) show(node, text);
  else hide(node);
}

function keep(node, output) {
  if (!output?.text) return;
  const text = [].concat(output.text).join("\n");
  show(node, text);
  if (node.properties[PROPERTY] === text) return;
  node.properties[PROPERTY] = text;
  // The front end notices changes by users only; a page may be reloaded before the next of those.
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  if (tracker?.captureCanvasState) tracker.captureCanvasState();
  else tracker?.checkState?.();
}

// The save node's folders with the free space of their disks, which the server adds to the node's definition.
function labelFolders(node) {
  const definition = node.constructor?.nodeData?.input?.required?.folder;
  const free = definition?.[1]?.free;
  const widget = node.widgets?.find((one) => one.name === "folder");
  if (!free || !widget) return;
  widget.options.getOptionLabel = (value) => (free[value] ? `${value} (${free[value]})` : `${value ?? ""}`);
}

// Nodes 2.0 folds advanced inputs away by itself. On the older canvas "advanced" gives the menu's entry that shows them,
// and "hidden" the place that they would leave empty.
function foldAdvanced(node) {
  const advanced = (node.widgets ?? []).filter((widget) => widget.options?.advanced);
  for (const widget of advanced) {
    widget.advanced = true;
    Object.defineProperty(widget, "hidden", {
      configurable: true,
      enumerable: true,
      get: () => !node.showAdvanced && !window.LiteGraph?.vueNodesMode,
      set() {},
    });
  }
  if (advanced.length) node.setSize([node.size[0], node.computeSize()[1]]);
}

// Nodes that show progress or a fault now, over what they keep.
const passing = new Set();

function settle() {
  for (const node of passing) restore(node);
  passing.clear();
}

// A fault is said on its node, and in a message of its own: the front end's only says that there is one.
function complain(node, sentence) {
  passing.add(node);
  show(node, `Stopped: ${sentence}`);
  const toast = app.extensionManager?.toast;
  const detail = { severity: "error", summary: node.title, detail: sentence, life: 12000 };
  if (toast?.add) toast.add(detail);
  else toast?.error?.(`${node.title}: ${sentence}`);
}

// Refused inputs come without an event, some moments after the prompt was sent.
function watchRefusals() {
  const faults = () => app.extensionManager?.lastNodeErrors ?? app.lastNodeErrors;
  const earlier = faults();
  let looks = 20;
  const timer = setInterval(() => {
    const found = faults();
    if (found === earlier && --looks > 0) return;
    clearInterval(timer);
    if (found === earlier) return;
    settle(); // what an earlier run complained of is not said of this one
    for (const [path, { errors }] of Object.entries(found ?? {})) {
      const node = nodeAt(path);
      const own = errors?.find((error) => error.type === "custom_validation_failed");
      if (own && isOurs(node)) complain(node, own.details.replace(/^\w+ - /, ""));
    }
  }, 250);
}

app.registerExtension({
  name: "tpecfp8quantizer.text",
  setup() {
    api.addEventListener("tpec.text", ({ detail }) => {
      const node = nodeAt(detail.node);
      if (!isOurs(node)) return;
      passing.add(node);
      show(node, detail.text);
    });
    api.addEventListener("promptQueueing", watchRefusals);
    api.addEventListener("execution_start", settle);
    api.addEventListener("execution_interrupted", settle);
    api.addEventListener("execution_error", ({ detail }) => {
      settle();
      const node = nodeAt(detail.node_id);
      if (isOurs(node)) complain(node, String(detail.exception_message).trim());
    });
  },
  nodeCreated(node) {
    if (!isOurs(node)) return;
    labelFolders(node);
    foldAdvanced(node);
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.apply(this, arguments);
      passing.delete(this);
      keep(this, output);
    };
    const configured = node.onConfigure;
    node.onConfigure = function () {
      configured?.apply(this, arguments);
      if (this.properties?.[PROPERTY]) restore(this);
    };
  },
  // Outputs of a run that ended while another workflow was open.
  onNodeOutputsUpdated(outputs) {
    for (const [locator, output] of Object.entries(outputs)) {
      const node = nodeLocated(locator);
      if (isOurs(node)) keep(node, output);
    }
  },
});
