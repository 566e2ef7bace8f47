// Small habits of every page: copy buttons, dialogs, times in the reader's own zone.
const announce = (text) => { const area = document.getElementById("announcer"); if (area) area.textContent = text; };

document.addEventListener("click", async (event) => {
  const copy = event.target.closest("[data-copy]");
  if (copy) {
    const source = document.getElementById(copy.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent.trim());
      announce("Copied");
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(source); // no clipboard on plain http: leave it selected for Ctrl-C
      copy.textContent = "Press Ctrl-C";
    }
    setTimeout(() => { copy.textContent = "Copy"; }, 2000);
  }
  const opener = event.target.closest("[data-dialog]");
  if (opener) document.getElementById(opener.dataset.dialog).showModal();
  const closer = event.target.closest("[data-close]");
  if (closer) closer.closest("dialog").close();
});

// A passkey or security key that was not used, in words: the browser says why only in its console.
document.addEventListener("allauth.error", (event) => {
  event.preventDefault();
  const words = event.detail.exception?.name === "NotAllowedError"
    ? "No key was used: the request was cancelled or took too long. Try again."
    : "This browser could not use a passkey or security key here.";
  document.getElementById("key-trouble")?.remove();
  const notice = Object.assign(document.createElement("p"), { id: "key-trouble", className: "notice bad", textContent: words });
  notice.setAttribute("role", "alert");
  document.querySelector("main form").before(notice);
});

const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
export function ago(seconds) {
  if (seconds < 10) return "just now";
  for (const [unit, size] of [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]])
    if (seconds >= size) return relative.format(-Math.floor(seconds / size), unit);
  return "just now";
}

function localTimes(root) {
  for (const node of root.querySelectorAll("time[datetime]")) {
    const at = new Date(node.dateTime);
    node.title = at.toLocaleString();
    node.textContent = "relative" in node.dataset
      ? ago((Date.now() - at) / 1000)
      : at.toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  }
}
localTimes(document);
document.addEventListener("htmx:load", (event) => localTimes(event.target.parentElement ?? event.target));
setInterval(() => localTimes(document), 20000);
