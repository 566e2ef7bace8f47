// Figures as people read them.
export const count = (n) => n.toLocaleString("en");

export function credits(micro) {
  return (micro / 1e6).toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 6 });
}

export function bytes(n) {
  if (n < 1024) return `${n} B`;
  let unit = 0;
  do { n /= 1024; unit += 1; } while (n >= 1024 && unit < 4);
  return `${n.toFixed(n < 10 ? 2 : n < 100 ? 1 : 0)} ${["", "KiB", "MiB", "GiB", "TiB"][unit]}`;
}

export function duration(seconds) {
  seconds = Math.max(0, Math.round(seconds));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${String(seconds % 60).padStart(2, "0")} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${String(Math.floor(seconds / 60) % 60).padStart(2, "0")} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor(seconds / 3600) % 24} h`;
}

export function clock(seconds) {
  const sign = seconds < 0 ? "−" : "";
  seconds = Math.round(Math.abs(seconds));
  const h = Math.floor(seconds / 3600), m = Math.floor(seconds / 60) % 60, s = String(seconds % 60).padStart(2, "0");
  return sign + (h ? `${h}:${String(m).padStart(2, "0")}:${s}` : `${m}:${s}`);
}

export function figure(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return count(value);
  const size = Math.abs(value);
  return size >= 1e-4 && size < 1e6 ? String(Number(value.toPrecision(5))) : value.toExponential(3);
}
