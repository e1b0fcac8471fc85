// Runs before anything is drawn, so that a page in dark colors never flashes white.
(() => {
  let stored = null;
  try { stored = localStorage.getItem("stexpr-theme"); } catch { /* a browser may forbid storage to local files */ }
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = stored ?? (dark ? "dark" : "light");
})();
