// The submit form: a folder that is dropped on it, which half of it is in use, where files lie below their folder (a browser
// sends bare names), and an upload that shows how far it is. Without this script it is an ordinary form.
const form = document.getElementById("submit-form");
const examples = JSON.parse(document.getElementById("examples").textContent);
const $ = (id) => document.getElementById(id);
const input = (name) => form.elements.namedItem(name);
const size = (bytes) => {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (bytes < 1024 || unit === "GiB") return `${unit === "B" ? bytes : bytes.toFixed(1)} ${unit}`;
    bytes /= 1024;
  }
};

// -- which half, and what was chosen -----------------------------------------------------------------------------------

function mode(wanted) {
  if (wanted) form.querySelector(`input[name=mode][value=${wanted}]`).checked = true;
  const chosen = form.querySelector("input[name=mode]:checked")?.value ?? "fields";
  for (const part of form.querySelectorAll("[data-mode]")) part.hidden = part.dataset.mode !== chosen;
}

// Put files into a field, with the paths that they have below their folder.
function choose(name, entries) {
  const box = new DataTransfer();
  for (const { file } of entries) box.items.add(file);
  input(name).files = box.files;
  chosen(name, entries.map(({ path }) => path));
}

function chosen(name, paths) {
  const files = [...input(name).files];
  const told = form.querySelector(`[data-paths-of="${name}"]`);
  if (told) told.value = JSON.stringify(paths ?? files.map((file) => file.webkitRelativePath || file.name));
  const summary = form.querySelector(`[data-summary-of="${name}"]`);
  const total = files.reduce((sum, file) => sum + file.size, 0);
  if (summary) summary.textContent = files.length ? `${files.length} file${files.length > 1 ? "s" : ""}, ${size(total)}` : "";
}

function fill(text) {
  input("document").value = text;
  mode("yaml");
  document.body.dispatchEvent(new CustomEvent("labapex:filled"));
}

form.addEventListener("change", (event) => {
  if (event.target.name === "mode") mode();
  if (event.target.type === "file") chosen(event.target.name);
  if (event.target.id === "example" && event.target.value) fill(examples[event.target.value]);
});

// -- a folder that is dropped ------------------------------------------------------------------------------------------

const SKIPPED = /(^|\/)(\.|__pycache__\/)/;

// All files of what was dropped, as [{path, file}] with paths below it.
async function read(entries, within = "") {
  const found = [];
  for (const entry of entries) {
    const path = within + entry.name;
    if (SKIPPED.test(path)) continue;
    if (entry.isFile) found.push({ path, file: await new Promise((done, failed) => entry.file(done, failed)) });
    else found.push(...await read(await children(entry), `${path}/`));
  }
  return found;
}

async function children(folder) {
  const reader = folder.createReader(), all = [];
  for (;;) {
    const some = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (!some.length) return all;
    all.push(...some);
  }
}

async function take(entries) {
  const alone = entries.length === 1 && entries[0].isDirectory;
  let files = alone ? await read(await children(entries[0])) : await read(entries);
  const spec = files.find(({ path }) => /^labapex\.ya?ml$/.test(path));
  if (spec) {
    files = files.filter((each) => each !== spec);
    fill(await spec.file.text());
  }
  const field = (name) => spec && input("document").value.match(new RegExp(`^${name}:\\s*["']?([^"'#\\n]*?)["']?\\s*(#.*)?$`, "m"))?.[1];
  const top = files.filter(({ path }) => /^[^/]+\.py$/.test(path)).map(({ path }) => path);
  const script = field("script") || (top.includes("train.py") ? "train.py" : top.length === 1 ? top[0] : null);
  const others = [...new Set(files.filter(({ path }) => path.includes("/") && !path.endsWith(".py")).map(({ path }) => path.split("/")[0]))];
  const data = spec ? field("data") : others.includes("data") ? "data" : others.length === 1 ? others[0] : null;
  const inData = ({ path }) => Boolean(data) && path.startsWith(`${data}/`);
  const rows = files.filter(inData), code = files.filter((each) => !inData(each) && each.path.endsWith(".py") && each.path !== script);
  const main = files.find(({ path }) => path === script);
  if (main) choose("script", [main]);
  choose("code", code.map(({ path, file }) => ({ path: `./${path}`, file })));
  choose("data_files", []);
  choose("data_folder", rows.map(({ path, file }) => ({ path: `./${path.slice(data.length + 1)}`, file })));
  if (data && !spec) input("folder").value = data;
  const left = files.length - rows.length - code.length - (main ? 1 : 0);
  $("dropped").textContent = [
    main ? `Script: ${script}.` : "No script was recognised: choose it below.",
    `${code.length} more code file${code.length === 1 ? "" : "s"}, ${rows.length} data file${rows.length === 1 ? "" : "s"}${data ? ` in ${data}/` : ""}.`,
    left ? `${left} left out.` : "",
  ].join(" ");
}

const drop = $("drop");
for (const kind of ["dragenter", "dragover"]) drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.remove("over"); });
drop.addEventListener("drop", async (event) => {
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean); // before any wait
  try {
    await take(entries);
  } catch {
    $("dropped").textContent = "The files could not be read: choose them below.";
  }
});

// -- sending -----------------------------------------------------------------------------------------------------------

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const request = new XMLHttpRequest(), [bar, words] = $("uploading").children;
  busy(true);
  request.upload.addEventListener("progress", ({ loaded, total }) => {
    bar.max = total;
    bar.value = loaded;
    words.textContent = loaded < total ? `${size(loaded)} of ${size(total)}` : "Sent; the platform checks and seals the files …";
  });
  request.addEventListener("load", () => {
    if (request.status < 300) location.assign(request.responseURL); // the job's page, or the sign-in page
    else refused(request.responseText);
  });
  request.addEventListener("error", () => refused(""));
  request.open("POST", form.action);
  request.send(new FormData(form));
});

// The form as the platform sends it back, with its complaints; the files stay as they were chosen.
function refused(text) {
  busy(false);
  const fresh = new DOMParser().parseFromString(text, "text/html").getElementById("submit-form");
  if (!fresh) {
    $("uploading").hidden = false;
    $("uploading").lastElementChild.textContent = "The platform did not take it. Nothing was submitted; try again.";
    return;
  }
  for (const name of ["script", "code", "data_files", "data_folder"]) {
    const asked = fresh.querySelector(`[name=${name}]`), here = input(name);
    for (const attribute of ["aria-invalid", "aria-describedby"]) {
      if (asked.hasAttribute(attribute)) here.setAttribute(attribute, asked.getAttribute(attribute));
      else here.removeAttribute(attribute);
    }
    const summary = fresh.querySelector(`[data-summary-of="${name}"]`);
    summary.textContent = form.querySelector(`[data-summary-of="${name}"]`).textContent;
    asked.replaceWith(here);
  }
  const said = $("dropped").textContent;
  form.replaceChildren(...fresh.childNodes);
  form.querySelector("#drop").replaceWith(drop);
  $("dropped").textContent = said;
  htmx.process(form);
  ready();
  form.querySelector("[aria-invalid=true]")?.focus();
}

function busy(on) {
  const button = form.querySelector("button[type=submit]");
  button.disabled = on;
  button.textContent = on ? "Uploading…" : button.dataset.label;
  $("uploading").hidden = !on;
}

function ready() {
  drop.hidden = false;
  $("from-example").hidden = Object.keys(examples).length === 0;
  mode();
}
addEventListener("pageshow", () => { busy(false); ready(); }); // shown again from the browser's history it must be usable again
ready();
form.querySelector("[aria-invalid=true]")?.focus();
