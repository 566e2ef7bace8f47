// One chart: lines over one x axis with zoom, cursor and keyboard, and its words for readers without the picture. Of what
// is drawn it knows nothing.

import uPlot from "../vendor/uplot/uPlot.esm.js";
import { clock, count } from "./format.js";

const STEPS_SECONDS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400, 172800];
export const ITERATIONS = { axis: { incrs: [1, 2, 5].flatMap((m) => Array.from({ length: 9 }, (_, p) => m * 10 ** p)).sort((a, b) => a - b), values: (_, splits) => splits.map((v) => v === null ? "" : count(v)), space: 70 } };
export const short = (v) => (v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e5) ? v.toExponential(0) : String(Number(v.toPrecision(6))));
export const SECONDS = { axis: { incrs: STEPS_SECONDS, values: (_, splits) => splits.map(clock), space: 70 } };

// A figure of a readout.
export const part = (name, value, kind = "") => {
  const node = document.createElement("span");
  if (kind) node.className = kind;
  const strong = document.createElement("b");
  strong.textContent = value;
  node.append(name ? `${name} ` : "", strong);
  return node;
};

const probe = document.createElement("span");
probe.hidden = true;
document.body.append(probe);
export function colour(name) { // a custom property with light-dark() has a value only where it is used
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

export class Chart {
  constructor(box, { label, series, x, y, draw, readout, log = false, logX = false }) {
    Object.assign(this, { box, label, series, x, y, drawOver: draw, readout, log, logX });
    this.zoomed = false;
    this.data = [[], ...series.map(() => [])];
    this.onCursor = () => {};
    this.onZoom = () => {};
    this.#build();
    this.sizes = new ResizeObserver(() => {
      const { width, height } = this.#size();
      if (width && (width !== this.plot.width || height !== this.plot.height)) this.plot.setSize({ width, height });
    });
    this.sizes.observe(box);
    box.addEventListener("keydown", (event) => this.#key(event));
    box.addEventListener("blur", () => this.#moved(null));
  }

  #size() { return { width: this.box.clientWidth, height: this.box.clientHeight }; }

  #build() {
    const kept = this.plot && this.zoomed ? { min: this.plot.scales.x.min, max: this.plot.scales.x.max } : null;
    this.plot?.destroy();
    const axis = {
      stroke: colour("muted"), grid: { stroke: colour("grid"), width: 1 }, ticks: { show: false },
      font: `12px ${getComputedStyle(document.body).fontFamily}`, gap: 6,
    };
    this.plot = new uPlot({
      ...this.#size(),
      padding: [10, 8, 0, 0],
      legend: { show: false },
      cursor: {
        y: false, drag: { x: true, y: false, dist: 6 }, points: { size: 7, fill: colour("surface") },
        bind: { dblclick: () => () => { this.reset(); return null; } },
      },
      scales: { x: this.logX ? { time: false, distr: 3, range: (_, min, max) => min < max ? [min, max] : min > 0 ? [min / 2, min * 2] : [1, 10] } : { time: false }, y: this.log ? { distr: 3, range: (_, min, max) => min > 0 ? [min * 0.9, max * 1.1] : [0.1, 1] } : { range: this.y.range } },
      axes: [
        { ...axis, size: 34, ...this.x.axis },
        { ...axis, size: 62, ...(this.log ? {} : this.y.axis), values: (_, splits) => splits.map((v) => v === null ? "" : this.y.format(v)) },
      ],
      series: [{}, ...this.series.map((line) => ({
        stroke: () => colour(line.colour()), fill: line.fill ? () => colour(line.fill) : undefined,
        width: line.width ?? 1.75, dash: line.dash, spanGaps: false, points: { show: true, size: 5, fill: colour(line.colour()), filter: (plot, index) => alone(plot.data[index]) },
      }))],
      hooks: {
        setCursor: [(plot) => { if (!this.told) this.#moved(plot.cursor.idx ?? null); }],
        setSelect: [(plot) => { if (plot.select.width > 0) this.#zoomedTo(plot.posToVal(plot.select.left, "x"), plot.posToVal(plot.select.left + plot.select.width, "x")); }],
        setScale: [(plot, key) => { if (key === "x") this.#describe(); }],
        draw: this.drawOver ? [(plot) => this.drawOver(plot, colour)] : [],
      },
    }, this.data, this.box);
    if (kept) this.plot.setScale("x", kept);
  }

  setData(data) {
    this.data = data;
    if (this.zoomed) { this.plot.setData(data, false); this.plot.redraw(); }
    else this.plot.setData(data);
    this.box.querySelector(".waiting")?.toggleAttribute("hidden", data[0].length > 0);
    this.#describe();
    const at = this.plot.cursor.idx;
    this.readout(at !== undefined && at !== null && at < data[0].length ? at : null);
  }

  remove() { this.plot.destroy(); this.sizes.disconnect(); }

  rebuild() { this.#build(); this.#describe(); }

  setLog(on) { this.log = on; this.rebuild(); }

  // On a logarithmic x axis: the caller sees to it that all of x is positive.
  setLogX(on) { this.logX = on; this.zoomed = false; this.rebuild(); }

  reset() {
    this.zoomed = false;
    this.plot.setData(this.data);
    this.#describe();
    this.onZoom(null);
  }

  // Follow another chart, without telling it in turn.
  follow(range) {
    this.zoomed = range !== null;
    if (range) this.plot.setScale("x", { min: range[0], max: range[1] });
    else this.plot.setData(this.data);
    this.#describe();
  }

  point(value) {
    this.told = true;
    const inside = value !== null && this.data[0].length && value >= this.plot.scales.x.min && value <= this.plot.scales.x.max;
    this.plot.setCursor(inside ? { left: this.plot.valToPos(value, "x"), top: 0 } : { left: -10, top: -10 });
    this.told = false;
    this.readout(inside ? this.plot.valToIdx(value) : null);
  }

  #zoomedTo(min, max) {
    this.zoomed = true;
    queueMicrotask(() => { this.#describe(); this.onZoom([min, max]); });
  }

  #moved(idx) {
    this.readout(idx);
    this.onCursor(idx === null ? null : this.data[0][idx]);
  }

  // For readers without the picture, and for anything that asks the page what it shows.
  #describe() {
    if (!this.plot) return;
    const { min, max } = this.plot.scales.x;
    this.box.dataset.points = this.data[0].length;
    this.box.dataset.zoomed = this.zoomed;
    this.box.dataset.min = min ?? "";
    this.box.dataset.max = max ?? "";
    this.box.setAttribute("aria-label", this.label(this.data));
  }

  #key(event) {
    const x = this.data[0];
    if (!x.length || event.ctrlKey || event.metaKey || event.altKey) return;
    const { min, max } = this.plot.scales.x;
    const low = this.plot.valToIdx(min), high = this.plot.valToIdx(max);
    const at = Math.min(Math.max(this.plot.cursor.idx ?? high, low), high);
    const stride = Math.max(1, Math.round((high - low) / (event.shiftKey ? 10 : 200)));
    const go = (idx) => this.plot.setCursor({ left: this.plot.valToPos(x[Math.min(Math.max(idx, low), high)], "x"), top: 0 });
    const zoom = (factor) => {
      const centre = x[at], range = [Math.max(x[0], centre - (centre - min) * factor), Math.min(x[x.length - 1], centre + (max - centre) * factor)];
      if (range[1] - range[0] < 1e-9 || range[0] <= x[0] && range[1] >= x[x.length - 1]) { this.reset(); return; }
      this.zoomed = true;
      this.plot.setScale("x", { min: range[0], max: range[1] });
      this.onZoom(range);
    };
    const keys = {
      ArrowLeft: () => go(at - stride), ArrowRight: () => go(at + stride), Home: () => go(low), End: () => go(high),
      "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: () => this.reset(), Escape: () => this.reset(),
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  }
}

// The next value of a line: null at its end and in a gap. Where another line alone has a point it is undefined, and no gap.
function neighbour(values, i, step) {
  do i += step; while (values[i] === undefined && i >= 0 && i < values.length);
  return values[i] ?? null;
}

// A value between two gaps, or the very first one, has no line to be seen by: it is drawn as a point.
function alone(values) {
  const found = [];
  for (let i = 0; i < values.length; i++)
    if (values[i] !== null && values[i] !== undefined && neighbour(values, i, -1) === null && neighbour(values, i, 1) === null) found.push(i);
  return found;
}
