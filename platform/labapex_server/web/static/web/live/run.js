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
    this.next = 0; // iterations that are known
    this.past = null; // the drawing that the run began with: what lies before `past.stop` is known in buckets only
    this.iterations = [];
    this.losses = []; // null where the loss was not finite; of a bucket first its least, then its greatest
    this.smooth = [];
    this.missing = []; // iterations whose loss was not finite
    this.notFinite = 0; // how many there are
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

  // Begin with the platform's drawing of what was logged so far; the feed then leaves it out.
  adopt(drawing) {
    this.past = drawing;
    this.cursor = drawing.cursor;
    this.next = drawing.stop;
    const { x, y, smooth, missing } = this.#points(drawing);
    this.iterations.push(...x);
    this.losses.push(...y);
    this.smooth.push(...smooth);
    for (const [iteration, count] of missing) { this.missing.push(iteration); this.notFinite += count; }
  }

  // The points of a drawing. A bucket of several iterations is two of them, so that no extreme value is lost; the moving
  // average goes on over its mean, once for each of its iterations.
  #points({ first, stop, width, least, greatest, mean, missing: counts }) {
    const x = [], y = [], smooth = [], missing = [];
    const origin = Math.floor(first / width) * width;
    for (let i = 0; i < least.length; i++) {
      const begin = Math.max(first, origin + i * width), middle = Math.min(origin + (i + 0.5) * width, stop);
      const average = this.#average(mean[i], width);
      x.push(begin); y.push(least[i]); smooth.push(average);
      if (width > 1 && middle > begin) { x.push(middle); y.push(greatest[i]); smooth.push(average); }
      if (counts[i]) missing.push([begin, counts[i]]);
    }
    return { x, y, smooth, missing };
  }

  // The run's points with a finer drawing of a part of it in their place.
  withDetail(drawing) {
    const low = lowest(this.iterations, drawing.first), high = lowest(this.iterations, drawing.stop);
    const kept = [this.average, this.weight];
    [this.average, this.weight] = low && this.smooth[low - 1] !== null ? [this.smooth[low - 1], 1] : [0, 0];
    const { x, y, smooth } = this.#points(drawing);
    [this.average, this.weight] = kept;
    const merge = (column, part) => [...column.slice(0, low), ...part, ...column.slice(high)];
    return [merge(this.iterations, x), merge(this.losses, y), merge(this.smooth, smooth)];
  }

  // Another host goes on behind the first `kept` iterations: what the lost one had logged beyond them counts no more.
  rewind(kept) {
    for (const column of [this.losses, this.iterations]) column.splice(lowest(this.iterations, kept));
    this.next = Math.min(this.next, kept);
    if (this.past && kept < this.past.stop) this.past = null; // each of its points was one iteration
    this.missing = this.missing.filter((iteration) => iteration < kept);
    this.notFinite = this.missing.length;
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
    const buckets = this.past?.width > 1 ? this.past.stop : 0;
    if (events.restarted && events.kept && events.kept < buckets) return false;
    if (events.restarted && events.kept) this.rewind(events.kept);
    else if (events.restarted) this.forget();
    if (events.losses.length && (events.first > this.next || events.first < (this.past?.stop ?? 0) && !events.restarted)) return false;
    this.cursor = events.cursor;
    this.job = events.job;
    this.handovers = events.handovers ?? [];
    const known = this.next - events.first; // sent twice after a reconnect: the same values again
    for (let i = Math.max(0, known); i < events.losses.length; i++) this.#push(events.first + i, events.losses[i]);
    const last = this.samples.length ? this.samples[this.samples.length - 1].at : -Infinity;
    for (const sample of events.samples) if (sample.at > last) this.samples.push(sample);
    this.console.push(...events.console);
    for (const { name, iterations, values } of events.series ?? []) this.#tell(name, iterations, values);
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
    if (value === null) { this.missing.push(iteration); this.notFinite += 1; }
    this.smooth.push(this.#average(value));
    this.next = iteration + 1;
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
  // `count`: over so many values with this mean.
  #average(value, count = 1) {
    if (value === null) return null;
    const kept = this.smoothing ** count;
    this.average = kept * this.average + (1 - kept) * value;
    this.weight = kept * this.weight + (1 - kept);
    return this.average / this.weight;
  }

  setSmoothing(smoothing) {
    this.smoothing = smoothing;
    this.average = 0;
    this.weight = 0;
    const past = this.past ? this.#points(this.past).smooth : [];
    this.smooth = past.slice(0, this.losses.length).concat(this.losses.slice(past.length).map((value) => this.#average(value)));
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

// The first place in an ascending column that is not below `value`.
function lowest(column, value) {
  let low = 0, high = column.length;
  while (low < high) { const mid = (low + high) >> 1; if (column[mid] < value) low = mid + 1; else high = mid; }
  return low;
}

// Linear interpolation in a table of rows that ascends in column `from`; null outside of it.
function between(table, x, from, to) {
  if (!table.length || x < table[0][from] || x > table[table.length - 1][from]) return null;
  let low = 0, high = table.length - 1;
  while (high - low > 1) { const mid = (low + high) >> 1; if (table[mid][from] <= x) low = mid; else high = mid; }
  const span = table[high][from] - table[low][from];
  return span ? table[low][to] + (table[high][to] - table[low][to]) * (x - table[low][from]) / span : table[low][to];
}
