// What a newcomer does, step by step, in one renderer. Prints a JSON object: step -> "" or what went wrong.
//   node drive.mjs URL CHROMIUM canvas|vue MODEL WRONG_FILE [folder for screenshots]
import { ComfyPage, pause } from "./page.mjs";

const [url, browser, renderer, model, wrong, pictures = ""] = process.argv.slice(2);
const TEMPLATES = ["Best quality with calibration", "Compare before and after", "Quantize a text encoder",
  "Quantize a model with its LoRAs", "Quantize and use in one run", "Quantize a diffusion model to FP8"];
const LOWER = /^Rounding error \d+ % lower than plain FP8/;
const PROGRESS = /step \d+ of \d+|\d+ of \d+ layers/;
// Seconds for a model that calibrates itself, on a machine that others use as well.
const PATIENCE = 2400;

function check(fact, words) {
  if (!fact) throw new Error(words);
}

function same(one, other) {
  check(JSON.stringify(one) === JSON.stringify(other), `${JSON.stringify(other)} became ${JSON.stringify(one)}`);
}

let settled = {};
let widths = {};

const STEPS = {
  // Ends with the first workflow open.
  async templates_open_without_a_red_mark(comfy) {
    for (const title of TEMPLATES) {
      await comfy.openTemplate(title);
      await comfy.shot(`template_${title.replaceAll(" ", "_")}`);
      same(await comfy.marked(), []);
      check(!/is missing|required model|errors? found/i.test(await comfy.words()), `${title} complains on opening`);
    }
  },

  async blank_choice_is_refused_in_words(comfy) {
    await comfy.run();
    await comfy.waitForWords(/Choose a model file first/);
    same(await comfy.marked(), ["TPECLoadCheckpoint"]);
    same((await comfy.texts()).TPECLoadCheckpoint, "Stopped: Choose a model file first.\n");
    await comfy.shot("blank_choice");
  },

  async first_workflow_runs_and_says_what_came_of_it(comfy) {
    await comfy.set("TPECLoadCheckpoint", "checkpoint", model);
    await comfy.set("TPECSaveScaledFP8", "filename", `tried_in_${renderer}`);
    // Another result than the other renderer's, so that this one has progress to show.
    await comfy.set("TPECQuantizeFP8", "num_iter", renderer === "vue" ? 2 : 1);
    await comfy.run();
    const progress = await comfy.waitForText("TPECQuantizeFP8", PROGRESS, PATIENCE);
    await comfy.shot("running");
    check(!/^(0 of|calibrating, step 1 of) .* left/.test(progress), `time left with nothing to judge by: ${progress}`);
    await comfy.waitForText("TPECQuantizeFP8", LOWER, PATIENCE);
    await comfy.waitForText("TPECSaveScaledFP8", new RegExp(`^Saved as tried_in_${renderer}`));
    await pause(800);
    await comfy.shot("done");
    settled = await comfy.texts();
    widths = await comfy.widths();
    check(!PROGRESS.test(JSON.stringify(settled)), "progress is left over");
    check(/calibrated itself/.test(settled.TPECQuantizeFP8), "the model did not calibrate itself");
    check(/^Flux: 48 % smaller as FP8\n/.test(settled.TPECLoadCheckpoint), "the loader does not say what the file is");
  },

  async texts_are_not_part_of_the_prompt(comfy) {
    const prompt = await comfy.page.evaluate(async () => (await window.app.graphToPrompt()).output);
    check(!/tpec_text|Rounding error/.test(JSON.stringify(prompt)), "text in the prompt");
  },

  async texts_survive_a_change_of_tabs(comfy) {
    await comfy.openTemplate("Quantize a text encoder");
    same(await comfy.texts(), {});
    await comfy.page.getByText("Quantize a diffusion", { exact: false }).first().click();
    await pause(1500);
    await comfy.shot("tab_again");
    same(await comfy.texts(), settled);
  },

  async texts_survive_a_reload(comfy) {
    await comfy.load();
    await comfy.shot("reloaded");
    same(await comfy.texts(), settled);
  },

  async cached_run_shows_them_too(comfy) {
    await comfy.page.evaluate(() => {
      for (const node of window.app.rootGraph.nodes) delete node.properties.tpec_text;
    });
    await comfy.run();
    await pause(3000);
    await comfy.shot("cached");
    same(await comfy.texts(), settled);
  },

  async cancelled_run_leaves_no_progress(comfy) {
    await comfy.set("TPECQuantizeFP8", "num_iter", renderer === "vue" ? 4 : 3);
    await comfy.run();
    await comfy.waitForText("TPECQuantizeFP8", PROGRESS);
    await comfy.page.evaluate(() => fetch("/interrupt", { method: "POST" }));
    await comfy.waitForText("TPECQuantizeFP8", LOWER, 30);
    same(await comfy.texts(), settled);
  },

  async taken_name_is_refused_before_any_work(comfy) {
    await comfy.set("TPECSaveScaledFP8", "if_exists", "error");
    const begun = Date.now();
    await comfy.run();
    await comfy.waitForWords(/Save Scaled FP8 failed|exists already/);
    check(!PROGRESS.test(JSON.stringify(await comfy.texts())), `work began after ${Date.now() - begun} ms`);
    await comfy.page.getByText(/view details/i).first().click().catch(() => {});
    await comfy.waitForWords(/exists already/);
    await comfy.shot("taken_name");
    check(!/errors\.TpecError/.test(await comfy.words()), "the dialog shows a module's path");
    check(/^Stopped: .* exists already/.test((await comfy.texts()).TPECSaveScaledFP8), "the node does not say why");
  },

  async wrong_file_glows_at_the_loader(comfy) {
    await comfy.set("TPECSaveScaledFP8", "if_exists", "number");
    await comfy.set("TPECLoadCheckpoint", "checkpoint", wrong);
    await comfy.run();
    await comfy.waitForWords(/it is a LoRA, not a model/);
    same(await comfy.marked(), ["TPECLoadCheckpoint"]);
    await pause(800);
    await comfy.shot("wrong_file");
    const { TPECLoadCheckpoint: said, ...others } = await comfy.texts();
    check(/^Stopped: .* is a LoRA/.test(said), "the loader does not say why");
    check(!/Stopped/.test(JSON.stringify(others)), "what an earlier run complained of still stands");
  },

  async search_finds_what_people_type(comfy) {
    for (const words of ["compress model", "smaller model", "convert fp8", "reduce vram"]) {
      await comfy.page.keyboard.press("Escape");
      await comfy.page.evaluate(() => window.app.extensionManager.command.execute("Workspace.SearchBox.Toggle"));
      await pause(800);
      await comfy.page.keyboard.type(words);
      await pause(1200);
      if (words === "reduce vram") await comfy.shot("search");
      const box = await comfy.page.evaluate(() => [...document.querySelectorAll(
        "[role=dialog], .p-dialog, .comfy-vue-node-search-container")].map((one) => one.innerText).join("\n"));
      check(/TPEC Quantize FP8/.test(box), `"${words}" does not find the node: ${box.slice(0, 300)}`);
      await comfy.page.keyboard.press("Escape");
    }
  },

  async help_panel_shows_the_page(comfy) {
    await comfy.page.keyboard.press("Escape");
    await comfy.select("TPECQuantizeFP8");
    await comfy.page.evaluate(() => window.app.extensionManager.command.execute("Comfy.Canvas.SelectedNodes.Info"))
      .catch(() => {});
    const button = comfy.page.locator("[data-testid=info-button]").first();
    if (await button.count()) await button.click();
    await comfy.waitForWords(/chooses the FP8 values of a layer together/, 15);
    await comfy.shot("help");
  },

  // The panel at the side draws a node's widgets as well, and may leave its width on them.
  async parameters_panel_shows_inputs_alone(comfy) {
    await comfy.select("TPECQuantizeFP8");
    await comfy.page.getByRole("tab", { name: "Parameters" }).first().click();
    await pause(1000);
    await comfy.shot("parameters");
    const words = await comfy.words();
    check(/keep_quality/.test(words) && !/tpec_text/.test(words), "the text's widget stands among the inputs");
    await comfy.select("none");
    same(await comfy.widths(), widths);
  },

  async speaks_chinese(comfy) {
    await comfy.settings({ "Comfy.Locale": "zh" });
    await comfy.load();
    await pause(1500);
    await comfy.shot("chinese");
    const names = await comfy.page.evaluate(() => ["TPECQuantizeFP8", "TPECCompare"].map((type) => {
      const node = window.LiteGraph.createNode(type);
      return `${node.title} ${node.inputs.map((one) => one.localized_name ?? one.label ?? "").join(" ")}`;
    }));
    for (const name of names) check(/[\u4e00-\u9fff]/.test(name), `no Chinese in "${name}"`);
    await comfy.settings({ "Comfy.Locale": "en" });
  },
};

const outcome = {};
const comfy = await ComfyPage.open(url, browser, { vue: renderer === "vue", pictures });
for (const [name, step] of Object.entries(STEPS)) {
  try {
    await step(comfy);
    outcome[name] = "";
  } catch (error) {
    outcome[name] = String(error.message ?? error).split("\n")[0];
    await comfy.shot(`failed_${name}`);
  }
}
outcome.page_has_no_errors = comfy.faults.join("; ");
await comfy.close();
console.log(JSON.stringify(outcome, null, 1));
