// The submit form: which half of it is in use, what was chosen, and where a folder's files lie (a browser sends bare names).
const form = document.getElementById("submit-form");
const size = (bytes) => {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (bytes < 1024 || unit === "GiB") return `${unit === "B" ? bytes : bytes.toFixed(1)} ${unit}`;
    bytes /= 1024;
  }
};

function mode() {
  const chosen = form.querySelector("input[name=mode]:checked")?.value ?? "fields";
  for (const part of form.querySelectorAll("[data-mode]")) part.hidden = part.dataset.mode !== chosen;
}
form.addEventListener("change", (event) => {
  if (event.target.name === "mode") mode();
  if (event.target.type !== "file") return;
  const files = [...event.target.files];
  const paths = form.querySelector(`[data-paths-of="${event.target.name}"]`);
  if (paths) paths.value = JSON.stringify(files.map((file) => file.webkitRelativePath || file.name));
  const summary = form.querySelector(`[data-summary-of="${event.target.name}"]`);
  const total = files.reduce((sum, file) => sum + file.size, 0);
  if (summary) summary.textContent = files.length ? `${files.length} file${files.length > 1 ? "s" : ""}, ${size(total)}` : "";
});
form.addEventListener("submit", () => {
  const button = form.querySelector("button[type=submit]");
  button.disabled = true;
  button.textContent = "Uploading…";
});
// A page that is shown again from the browser's history must be usable again.
addEventListener("pageshow", () => {
  const button = form.querySelector("button[type=submit]");
  button.disabled = false;
  button.textContent = button.dataset.label;
  mode();
});
mode();
form.querySelector("[aria-invalid=true]")?.focus();
