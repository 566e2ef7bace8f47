// The charts of a run, under one cursor: loss against iterations, utilisation and memory against time, and below them whatever
// series the script tells by itself.
//
// A zoom belongs to the reader: new points are drawn into it and never move it. Charts against the same thing share it.

import { Chart, ITERATIONS, SECONDS, part, short } from "./chart.js";
import { bytes, clock, count, figure } from "./format.js";

const STEPS_BYTES = Array.from({ length: 50 }, (_, power) => 2 ** power);

// -- what is drawn over the loss: the epochs' ends, where another host went on, a cross where the loss was no number -----

function epochs(plot, colour, run) {
  if (!run.perEpoch || !run.job) return;
  const { ctx, bbox } = plot, scale = devicePixelRatio;
  const left = Math.max(1, Math.ceil(plot.scales.x.min / run.perEpoch)), right = Math.min(run.job.spec.epochs, Math.floor(plot.scales.x.max / run.perEpoch));
  if (!(right >= left)) return;
  const pixels = (epoch) => plot.valToPos(epoch * run.perEpoch, "x", true);
  const gap = (pixels(right + 1) - pixels(right)) / scale; // on a logarithmic axis the narrowest
  const stride = Math.max(1, Math.ceil(8 / gap)), labels = stride * Math.max(1, Math.ceil(64 / (gap * stride)));
  ctx.save();
  ctx.strokeStyle = colour("epoch");
  ctx.fillStyle = colour("muted");
  ctx.lineWidth = scale;
  ctx.setLineDash([3 * scale, 3 * scale]);
  ctx.font = `${11 * scale}px ${getComputedStyle(document.body).fontFamily}`;
  ctx.textAlign = "right";
  for (let epoch = Math.ceil(left / stride) * stride; epoch <= right; epoch += stride) {
    const x = Math.round(pixels(epoch));
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

export class Charts {
  constructor(run, boxes, readouts, frame, detailed) {
    this.run = run;
    this.detail = null; // a finer drawing of what a zoom shows
    this.shown = [[], [], []]; // iterations, losses and their average, as they are drawn
    this.detailed = detailed;
    this.frame = frame; // (name) -> the elements of one more chart
    this.series = new Map(); // name -> its chart, made when there is something to draw
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
      x: SECONDS,
      y: { range: [0, 100], format: (v) => `${v} %`, axis: { incrs: [25, 50], space: 24 } },
      readout: (idx) => this.#sampleReadout(readouts.utilisation, idx, (sample) => [part("", `${figure(Math.round(sample.utilisation * 10) / 10)} %`), ...told(sample)]),
    });
    this.memory = new Chart(boxes.memory, {
      label: ([x, y]) => x.length ? `${this.device()} memory against time: last ${bytes(y[y.length - 1] ?? 0)}.` : "Memory against time: no samples yet.",
      series: [{ colour: () => "memory", fill: "memory-fill" }],
      x: SECONDS,
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
    if (this.loss.logX && this.shown[0][0] <= 0) this.shown = this.shown.map((column) => column.slice(1)); // nor does x
    const [x, losses, average] = this.shown;
    const raw = this.loss.log ? positive(losses) : losses;
    const smooth = run.smoothing > 0 ? (this.loss.log ? positive(average) : average) : losses.map(() => null);
    this.loss.setData([x, raw, smooth]);
  }

  // Points are drawn first and last: an axis must not meet one that it cannot show.
  setLogX(on) {
    this.loss.logX = on;
    if (on) this.drawLoss();
    this.loss.setLogX(on);
    this.drawLoss();
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
