// What is known of a run, folded from the platform's `Events` messages. Pure: no page, no clock, no network.

export class Run {
  constructor() {
    this.cursor = "";
    this.job = null;
    this.smoothing = 0.6;
    this.rules = [];
    this.generation = 0; // grows when the points begin again, so that a view knows to forget its zoom and text
    this.forget();
  }

  // A new lease starts the run from its first iteration: points of the earlier one are no part of it.
  forget() {
    this.iterations = [];
    this.losses = []; // null where the loss was not finite
    this.smooth = [];
    this.missing = []; // iterations whose loss was not finite
    this.average = 0;
    this.weight = 0;
    this.samples = [];
    this.console = []; // what arrived since the view last took it
    this.clock = []; // [iteration, Unix time], ascending
    this.rules = [];
    this.series = new Map(); // what the script tells itself: name -> [iterations, values]
    this.handovers = []; // where another host went on: {iteration, before, after}
    this.generation += 1;
  }

  // Another host goes on behind the first `kept` iterations: what the lost one had logged beyond them counts no more.
  rewind(kept) {
    for (const column of [this.iterations, this.losses]) column.splice(kept);
    this.missing = this.missing.filter((iteration) => iteration < kept);
    this.clock = this.clock.filter(([iteration]) => iteration < kept);
    for (const [name, columns] of this.series) {
      const count = columns[0].filter((iteration) => iteration <= kept).length; // a point there was told before its iteration
      if (count) this.series.set(name, columns.map((column) => column.slice(0, count)));
      else this.series.delete(name);
    }
    this.setSmoothing(this.smoothing);
  }

  // Fold one message in. Returns false where points before it are missing: the feed must begin again.
  apply(events) {
    if (events.restarted && events.kept) this.rewind(events.kept);
    else if (events.restarted) this.forget();
    if (events.first > this.losses.length && events.losses.length) return false;
    this.cursor = events.cursor;
    this.job = events.job;
    this.handovers = events.handovers;
    const known = this.losses.length - events.first; // sent twice after a reconnect: the same values again
    for (let i = Math.max(0, known); i < events.losses.length; i++) this.#push(events.first + i, events.losses[i]);
    const last = this.samples.length ? this.samples[this.samples.length - 1].at : -Infinity;
    for (const sample of events.samples) if (sample.at > last) this.samples.push(sample);
    this.console.push(...events.console);
    for (const { name, iterations, values } of events.series) this.#tell(name, iterations, values);
    for (const rule of events.rules) {
      const at = this.rules.findIndex((known) => known.rule === rule.rule);
      if (at < 0) this.rules.push(rule);
      else this.rules[at] = rule;
    }
    return true;
  }

  #push(iteration, loss) {
    this.iterations.push(iteration);
    const value = loss === null || !Number.isFinite(loss) ? null : loss;
    this.losses.push(value);
    if (value === null) this.missing.push(iteration);
    this.smooth.push(this.#average(value));
  }

  // Sent twice after a reconnect, or told again of the same iteration: the later value takes the earlier one's place.
  #tell(name, iterations, values) {
    const [x, y] = this.series.get(name) ?? [[], []];
    for (let i = 0; i < iterations.length; i++) {
      const last = x.length ? x[x.length - 1] : -1;
      if (iterations[i] < last) continue;
      if (iterations[i] > last) x.push(iterations[i]);
      y[x.length - 1] = values[i];
    }
    this.series.set(name, [x, y]); // another array, so that a view sees that it changed
  }

  // Exponential moving average without the bias of its start (Adam's correction): the first point is itself.
  #average(value) {
    if (value === null) return null;
    this.average = this.smoothing * this.average + (1 - this.smoothing) * value;
    this.weight = this.smoothing * this.weight + (1 - this.smoothing);
    return this.average / this.weight;
  }

  setSmoothing(smoothing) {
    this.smoothing = smoothing;
    this.average = 0;
    this.weight = 0;
    this.smooth = this.losses.map((value) => this.#average(value));
  }

  takeConsole() {
    const taken = this.console;
    this.console = [];
    return taken;
  }

  get perEpoch() { return this.job?.iterations_per_epoch ?? null; }
  get start() { return this.samples.length ? this.samples[0].at : this.clock.length ? this.clock[0][1] : 0; }
  get source() { return this.samples.length ? this.samples[this.samples.length - 1].source : null; }

  epochOf(iteration) { return this.perEpoch ? Math.floor(iteration / this.perEpoch) + 1 : null; }
  timeOf(iteration) { return between(this.clock, iteration, 0, 1); }
  iterationOf(time) { const at = between(this.clock, time, 1, 0); return at === null ? null : Math.round(at); }

  // Samples as columns against seconds since the first; a hole where the host was silent is a gap, not a straight line.
  columns() {
    const time = [], utilisation = [], memory = [];
    const steps = this.samples.slice(1, 200).map((sample, i) => sample.at - this.samples[i].at).sort((a, b) => a - b);
    const hole = Math.max(10, 5 * (steps[steps.length >> 1] ?? 0));
    let last = null;
    for (const sample of this.samples) {
      const at = sample.at - this.start;
      if (last !== null && at - last > hole) { time.push(last + hole / 2); utilisation.push(null); memory.push(null); }
      time.push(at); utilisation.push(sample.utilisation); memory.push(sample.memory);
      last = at;
    }
    return [time, utilisation, memory];
  }
}

// Linear interpolation in a table of rows that ascends in column `from`; null outside of it.
function between(table, x, from, to) {
  if (!table.length || x < table[0][from] || x > table[table.length - 1][from]) return null;
  let low = 0, high = table.length - 1;
  while (high - low > 1) { const mid = (low + high) >> 1; if (table[mid][from] <= x) low = mid; else high = mid; }
  const span = table[high][from] - table[low][from];
  return span ? table[low][to] + (table[high][to] - table[low][to]) * (x - table[low][from]) / span : table[low][to];
}
