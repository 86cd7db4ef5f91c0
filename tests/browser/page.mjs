// A page of ComfyUI in headless Chromium, and what a user does there. Needs playwright-core.
import { createRequire } from "node:module";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";

const require = createRequire(process.env.PLAYWRIGHT_CORE ? path.join(process.env.PLAYWRIGHT_CORE, "x.js") : import.meta.url);
const { chromium } = require("playwright-core");

const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class ComfyPage {
  // `vue`: Nodes 2.0 in place of the canvas.
  static async open(url, browser, { vue = false, locale = "en", pictures = "" } = {}) {
    const self = new ComfyPage();
    self.url = url;
    self.pictures = pictures;
    self.name = vue ? "vue" : "canvas";
    self.profile = fs.mkdtempSync(path.join(os.tmpdir(), "tpec-browser-"));
    self.context = await chromium.launchPersistentContext(self.profile, {
      executablePath: browser, headless: true, viewport: { width: 1600, height: 900 }, args: FLAGS });
    self.page = self.context.pages()[0] ?? (await self.context.newPage());
    self.faults = [];
    self.page.on("pageerror", (error) => self.faults.push(String(error)));
    await self.load();
    await self.settings({ "Comfy.VueNodes.Enabled": vue, "Comfy.Locale": locale, "Comfy.TutorialCompleted": true,
      "Comfy.Minimap.Visible": false, "Comfy.RightSidePanel.IsOpen": false,
      "Comfy.Templates.SortBy": "default" });
    await self.load();
    return self;
  }

  async close() {
    await this.context.close();
    fs.rmSync(this.profile, { recursive: true, force: true });
  }

  async load() {
    await this.page.goto(this.url);
    await this.page.waitForFunction(() => window.app?.extensionManager && window.app.rootGraph, null, { timeout: 120000 });
    await pause(2500);
  }

  settings(values) {
    return this.page.evaluate(async (all) => {
      for (const [key, value] of Object.entries(all)) await window.app.extensionManager.setting.set(key, value);
    }, values);
  }

  async shot(name, options = {}) {
    if (this.pictures) await this.page.screenshot({ path: path.join(this.pictures, `${this.name}_${name}.png`), ...options });
  }

  async openTemplate(title) {
    await this.page.keyboard.press("Escape");
    await this.page.getByRole("button", { name: /templates|\u6a21\u677f/i }).first().click();
    const dialog = this.page.getByRole("dialog");
    await dialog.getByText("tpec-fp8", { exact: true }).first().click();
    await pause(1500);
    await this.shot("templates");
    await dialog.getByText(title, { exact: true }).first().click();
    await this.page.waitForFunction(() => window.app.rootGraph.nodes.some((node) => node.type.startsWith("TPEC")));
    await pause(1500);
  }

  // Choose a widget's value, as its own control does.
  set(type, widget, value) {
    return this.page.evaluate(([type, widget, value]) => {
      const node = window.app.rootGraph.nodes.find((one) => one.type === type);
      const found = node.widgets.find((one) => one.name === widget);
      found.value = value;
      found.callback?.(value, window.app.canvas, node);
    }, [type, widget, value]);
  }

  async run() {
    await this.page.getByRole("button", { name: /^(run|\u8fd0\u884c|\u6267\u884c)$/i }).first().click();
  }

  // What stands in the text boxes, by node type, as drawn on the page.
  texts() {
    return this.page.evaluate(() => Object.fromEntries(window.app.rootGraph.nodes.flatMap((node) => {
      const box = node.widgets?.find((one) => one.name === "tpec_text")?.element;
      const visible = box?.isConnected && box.getBoundingClientRect().height > 10;
      return visible ? [[node.type, [...box.children].map((part) => part.textContent).join("\n")]] : [];
    })));
  }

  // Pixels of the text boxes at zoom 1, by node type.
  widths() {
    return this.page.evaluate(() => Object.fromEntries(window.app.rootGraph.nodes.flatMap((node) => {
      const box = node.widgets?.find((one) => one.name === "tpec_text")?.element;
      return box ? [[node.type, box.offsetWidth]] : [];
    })));
  }

  async select(type) {
    await this.page.evaluate((type) => {
      window.app.canvas.deselectAll();
      const node = window.app.rootGraph.nodes.find((one) => one.type === type);
      if (node) window.app.canvas.selectNode(node);
    }, type);
    await pause(600);
  }

  async waitForText(type, pattern, seconds = 240) {
    const end = Date.now() + 1000 * seconds;
    while (Date.now() < end) {
      const text = (await this.texts())[type];
      if (text && pattern.test(text)) return text;
      await pause(200);
    }
    throw new Error(`${type} never showed ${pattern}: ${JSON.stringify(await this.texts())}`);
  }

  async waitForWords(pattern, seconds = 30) {
    await this.page.getByText(pattern).first().waitFor({ timeout: 1000 * seconds });
  }

  // Nodes with a red mark.
  marked() {
    return this.page.evaluate(() => window.app.rootGraph.nodes.filter((node) => node.has_errors).map((node) => node.type));
  }

  async words() {
    return this.page.evaluate(() => document.body.innerText);
  }
}
