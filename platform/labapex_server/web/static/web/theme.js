// Light or dark. Loaded in <head> before the first paint, so that a chosen theme never flashes the other one.
(() => {
  const root = document.documentElement;
  const key = "labapex-theme";
  const apply = (theme) => {
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    else delete root.dataset.theme;
  };
  const stored = () => { try { return localStorage.getItem(key); } catch { return null; } }; // storage may be denied
  apply(stored());
  const dark = () =>
    root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.addEventListener("click", (event) => {
    if (!event.target.closest("[data-theme-toggle]")) return;
    const theme = dark() ? "light" : "dark";
    apply(theme);
    try { localStorage.setItem(key, theme); } catch { /* the choice then lasts for this page */ }
    document.dispatchEvent(new CustomEvent("labapex:theme"));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
    document.dispatchEvent(new CustomEvent("labapex:theme")));
})();
