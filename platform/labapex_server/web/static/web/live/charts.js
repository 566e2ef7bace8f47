// The charts of a run, under one cursor: loss against iterations, utilisation and memory against time, and below them whatever
// series the script tells by itself.
//
// A zoom belongs to the reader: new points are drawn into it and never move it. Charts against the same thing share it.

import uPlot from "../vendor/uplot/uPlot.esm.js";
import { bytes, clock, count, figure } from "./format.js";

const STEPS_SECONDS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400, 172800];
const STEPS_BYTES = Array.from({ length: 50 }, (_, power) => 2 ** power);

const probe = document.createElement("span");
probe.hidden = true;
document.body.append(probe);
function colour(name) { // a custom property with light-dark() has a value only where it is used
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

class Chart {
  constructor(box, { label, series, x, y, draw, readout, log }) {
    Object.assign(this, { box, label, series, x, y, drawOver: draw, readout, log });
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
      scales: { x: { time: false }, y: this.log ? { distr: 3, range: (_, min, max) => min > 0 ? [min * 0.9, max * 1.1] : [0.1, 1] } : { range: this.y.range } },
      axes: [
        { ...axis, size: 34, ...this.x.axis },
        { ...axis, size: 62, ...(this.log ? {} : this.y.axis), values: (_, splits) => splits.map((v) => v === null ? "" : this.y.format(v)) },
      ],
      series: [{}, ...this.series.map((line) => ({
        stroke: () => colour(line.colour()), fill: line.fill ? () => colour(line.fill) : undefined,
        width: line.width ?? 1.75, spanGaps: false, points: { show: true, size: 5, fill: colour(line.colour()), filter: (plot, index) => alone(plot.data[index]) },
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

// A value between two gaps, or the very first one, has no line to be seen by: it is drawn as a point.
function alone(values) {
  const found = [];
  for (let i = 0; i < values.length; i++)
    if (values[i] !== null && (values[i - 1] ?? null) === null && (values[i + 1] ?? null) === null) found.push(i);
  return found;
}

// -- what is drawn over the loss: the epochs' ends, where another host went on, a cross where the loss was no number -----

function epochs(plot, colour, run) {
  if (!run.perEpoch || !run.job) return;
  const { ctx, bbox } = plot, scale = devicePixelRatio;
  const left = Math.max(1, Math.ceil(plot.scales.x.min / run.perEpoch)), right = Math.min(run.job.spec.epochs, Math.floor(plot.scales.x.max / run.perEpoch));
  if (!(right >= left)) return;
  const gap = (plot.valToPos(run.perEpoch, "x", true) - plot.valToPos(0, "x", true)) / scale;
  const stride = Math.max(1, Math.ceil(8 / gap)), labels = stride * Math.max(1, Math.ceil(64 / (gap * stride)));
  ctx.save();
  ctx.strokeStyle = colour("epoch");
  ctx.fillStyle = colour("muted");
  ctx.lineWidth = scale;
  ctx.setLineDash([3 * scale, 3 * scale]);
  ctx.font = `${11 * scale}px ${getComputedStyle(document.body).fontFamily}`;
  ctx.textAlign = "right";
  for (let epoch = Math.ceil(left / stride) * stride; epoch <= right; epoch += stride) {
    const x = Math.round(plot.valToPos(epoch * run.perEpoch, "x", true));
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    if (epoch % labels === 0 && x - bbox.left > 56 * scale) ctx.fillText(`epoch ${epoch}`, x - 4 * scale, bbox.top + 11 * scale);
  }
  ctx.restore();
}

function handovers(plot, colour, run) {
  const { ctx, bbox } = plot, scale = devicePixelRatio;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = colour("muted");
  ctx.lineWidth = scale;
  ctx.font = `${11 * scale}px ${getComputedStyle(document.body).fontFamily}`;
  ctx.textAlign = "left";
  for (const { iteration, before, after } of run.handovers) {
    const x = Math.round(plot.valToPos(iteration, "x", true));
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.fillText(`${before} → ${after}`, x + 4 * scale, bbox.top + bbox.height - 6 * scale);
  }
  ctx.restore();
}

function crosses(plot, colour, run) {
  if (!run.missing.length) return;
  const { ctx, bbox } = plot, scale = devicePixelRatio, y = bbox.top + bbox.height - 9 * scale, arm = 4 * scale;
  ctx.save();
  ctx.strokeStyle = colour("bad");
  ctx.lineWidth = 1.75 * scale;
  ctx.beginPath();
  let before = -Infinity;
  for (const iteration of run.missing) {
    const x = plot.valToPos(iteration, "x", true);
    if (x < bbox.left || x > bbox.left + bbox.width || x - before < 2 * arm) continue;
    before = x;
    ctx.moveTo(x - arm, y - arm); ctx.lineTo(x + arm, y + arm);
    ctx.moveTo(x - arm, y + arm); ctx.lineTo(x + arm, y - arm);
  }
  ctx.stroke();
  ctx.restore();
}

// What a GPU tells besides: a few words of the readout, and nothing where it tells nothing.
const HELD_DOWN = {
  "application-clocks": "set clocks", "power-cap": "power limit", "hardware-slowdown": "hardware slowdown", "sync-boost": "other GPUs",
  thermal: "heat", "hardware-thermal": "heat", "power-brake": "power supply", "display-clocks": "a display", "board-limit": "board limit",
  reliability: "voltage limit", other: "something",
};
function told(sample) {
  const parts = [];
  if (sample.power !== null && sample.power !== undefined) parts.push(part("", `${Math.round(sample.power)} W`));
  if (sample.temperature !== null && sample.temperature !== undefined) parts.push(part("", `${sample.temperature} °C`));
  const held = [...new Set((sample.throttled ?? []).map((word) => HELD_DOWN[word]).filter(Boolean))];
  if (held.length) parts.push(part("held down by", held.join(", "), "held-down"));
  return parts;
}

// -- all of them together ----------------------------------------------------------------------------------------------

const part = (name, value, kind = "") => {
  const node = document.createElement("span");
  if (kind) node.className = kind;
  const strong = document.createElement("b");
  strong.textContent = value;
  node.append(name ? `${name} ` : "", strong);
  return node;
};

const ITERATIONS = { axis: { incrs: [1, 2, 5].flatMap((m) => Array.from({ length: 9 }, (_, p) => m * 10 ** p)).sort((a, b) => a - b), values: (_, splits) => splits.map(count), space: 70 } };
const short = (v) => (v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e5) ? v.toExponential(0) : String(Number(v.toPrecision(6))));

export class Charts {
  constructor(run, boxes, readouts, frame, detailed) {
    this.run = run;
    this.detail = null; // a finer drawing of what a zoom shows
    this.shown = [[], [], []]; // iterations, losses and their average, as they are drawn
    this.detailed = detailed;
    this.frame = frame; // (name) -> the elements of one more chart
    this.series = new Map(); // name -> its chart, made when there is something to draw
    const seconds = { axis: { incrs: STEPS_SECONDS, values: (_, splits) => splits.map(clock), space: 70 } };
    const smoothed = () => run.smoothing > 0;
    this.loss = new Chart(boxes.loss, {
      label: ([x, y]) => x.length
        ? `Training loss against iterations: ${count(x.length)} points, last ${figure(y[y.length - 1])}.${this.told()} Arrow keys move the cursor, plus and minus zoom, 0 shows all.`
        : "Training loss against iterations: no points yet.",
      series: [
        { colour: () => (smoothed() ? "loss-raw" : "loss"), width: 1.25 },
        { colour: () => "loss", width: 2.25 },
      ],
      x: ITERATIONS,
      y: { format: short },
      draw: (plot, paint) => { epochs(plot, paint, run); handovers(plot, paint, run); crosses(plot, paint, run); },
      readout: (idx) => this.#lossReadout(readouts.loss, idx),
    });
    this.utilisation = new Chart(boxes.utilisation, {
      label: ([x, y]) => x.length ? `${this.device()} utilisation against time: last ${figure(y[y.length - 1])} percent.` : "Utilisation against time: no samples yet.",
      series: [{ colour: () => "util", fill: "util-fill" }],
      x: seconds,
      y: { range: [0, 100], format: (v) => `${v} %`, axis: { incrs: [25, 50], space: 24 } },
      readout: (idx) => this.#sampleReadout(readouts.utilisation, idx, (sample) => [part("", `${figure(Math.round(sample.utilisation * 10) / 10)} %`), ...told(sample)]),
    });
    this.memory = new Chart(boxes.memory, {
      label: ([x, y]) => x.length ? `${this.device()} memory against time: last ${bytes(y[y.length - 1] ?? 0)}.` : "Memory against time: no samples yet.",
      series: [{ colour: () => "memory", fill: "memory-fill" }],
      x: seconds,
      y: { range: (_, __, max) => [0, (max || 1) * 1.15], format: bytes, axis: { incrs: STEPS_BYTES, space: 32 } },
      readout: (idx) => this.#sampleReadout(readouts.memory, idx, (sample) => [part("", bytes(sample.memory)), part("of", bytes(sample.memory_total))]),
    });
    this.#link();
  }

  // Where another host went on, in words.
  told() { return this.run.handovers.map(({ iteration, after }) => ` ${after} went on at ${count(iteration)}.`).join(""); }

  device() { return this.run.source === "nvml" ? "GPU" : "CPU"; }

  #link() {
    const { loss, utilisation, memory, run } = this;
    this.#follow(loss);
    for (const [chart, other] of [[utilisation, memory], [memory, utilisation]]) {
      chart.onCursor = (time) => {
        other.point(time);
        const iteration = time === null ? null : run.iterationOf(time + run.start);
        for (const each of this.#byIteration()) each.point(iteration);
      };
      chart.onZoom = (range) => { other.follow(range); };
    }
    for (const event of ["labapex:theme"]) document.addEventListener(event, () => this.all((chart) => chart.rebuild()));
  }

  all(action) { for (const chart of [...this.#byIteration(), this.utilisation, this.memory]) action(chart); }

  #byIteration() { return [this.loss, ...this.series.values()]; }

  // Let a chart against iterations lead all others.
  #follow(chart) {
    const { run } = this;
    chart.onCursor = (iteration) => {
      const time = iteration === null ? null : run.timeOf(iteration);
      for (const other of [this.utilisation, this.memory]) other.point(time === null ? null : time - run.start);
      for (const other of this.#byIteration()) if (other !== chart) other.point(iteration);
    };
    chart.onZoom = (range) => {
      for (const other of this.#byIteration()) if (other !== chart) other.follow(range);
      if (range) this.#refine(range);
    };
  }

  drawLoss() {
    const { run } = this;
    const positive = (values) => values.map((value) => (value !== null && value > 0 ? value : null)); // log axes know no zero
    this.shown = this.detail ? run.withDetail(this.detail) : [run.iterations, run.losses, run.smooth];
    const [x, losses, average] = this.shown;
    const raw = this.loss.log ? positive(losses) : losses;
    const smooth = run.smoothing > 0 ? (this.loss.log ? positive(average) : average) : losses.map(() => null);
    this.loss.setData([x, raw, smooth]);
  }

  // A zoom into what is known in buckets only asks for a finer drawing of it: `detailed(first, stop)`.
  #refine([min, max]) {
    const { run } = this;
    if (!(run.past?.width > 1) || min >= run.past.stop) return;
    const first = Math.max(0, Math.floor(min)), stop = Math.min(run.past.stop, Math.ceil(max) + 1);
    clearTimeout(this.refining);
    this.refining = setTimeout(async () => {
      const generation = run.generation, drawing = await this.detailed(first, stop);
      if (!drawing || generation !== run.generation || drawing.width >= run.past.width) return;
      this.detail = drawing;
      this.drawLoss();
    }, 80);
  }

  drawSamples() {
    const [time, utilisation, memory] = this.run.columns();
    this.utilisation.setData([time, utilisation]);
    this.memory.setData([time, memory]);
  }

  drawSeries() {
    for (const [name, columns] of this.run.series) {
      if (!this.series.has(name)) this.series.set(name, this.#one(name));
      const chart = this.series.get(name);
      if (chart.data !== columns) chart.setData(columns);
    }
  }

  #one(name) {
    const { run } = this, { box, readout } = this.frame(name);
    const chart = new Chart(box, {
      label: ([x, y]) => `${name} against iterations, as the script tells it: ${count(x.length)} points${x.length ? `, last ${figure(y[y.length - 1])}` : ""}.`,
      series: [{ colour: () => "told" }],
      x: ITERATIONS,
      y: { format: short },
      readout: (idx) => {
        const [x, y] = run.series.get(name) ?? [[], []], at = idx ?? x.length - 1;
        if (at < 0 || at >= x.length) { readout.replaceChildren(); return; }
        readout.replaceChildren(
          part(idx === null ? "latest: iteration" : "iteration", count(x[at])),
          y[at] === null ? part("", "not a finite number", "bad") : part("", figure(y[at])),
        );
      },
    });
    this.#follow(chart);
    return chart;
  }

  restart() {
    this.detail = null;
    this.all((chart) => { chart.zoomed = false; });
    for (const chart of this.series.values()) chart.remove();
    this.series.clear();
  }

  #lossReadout(box, idx) {
    const { run } = this, [x, losses, average] = this.shown;
    const at = idx ?? x.length - 1;
    if (at < 0 || at >= x.length) { box.replaceChildren(); return; }
    const iteration = Math.floor(x[at]), value = losses[at], epoch = run.epochOf(iteration);
    const parts = [part(idx === null ? "latest: iteration" : "iteration", count(iteration))];
    if (epoch) parts.push(part("epoch", String(epoch)));
    parts.push(value === null ? part("", "loss is not a finite number", "bad") : part("loss", figure(value)));
    if (run.smoothing > 0 && average[at] !== null) parts.push(part("smoothed", figure(average[at])));
    if (run.notFinite) parts.push(part("", `${count(run.notFinite)} not finite ✕`, "bad"));
    box.replaceChildren(...parts);
  }

  #sampleReadout(box, idx, figures) {
    const { run } = this;
    const time = idx === null ? null : this.utilisation?.data[0][idx] ?? null;
    const sample = time === null ? run.samples[run.samples.length - 1] : run.samples.find((s) => s.at - run.start === time);
    if (!sample) { box.replaceChildren(...(time === null ? [] : [part("", "no sample here")])); return; }
    const parts = [...figures(sample), part(idx === null ? "latest, after" : "after", clock(sample.at - run.start))];
    // One line, whatever there is to tell: a second one would move the chart.
    if (!parts.some((node) => node.className === "held-down")) parts.push(part("at", new Date(sample.at * 1000).toLocaleTimeString()));
    box.replaceChildren(...parts);
  }
}
