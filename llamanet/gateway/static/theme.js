// Light or dark: as the system says, unless the reader chose. Runs before the page is drawn, so that nothing flashes.
(() => {
  const NAME = "llamanet-theme";
  const WORDS = { auto: "as the system", light: "light", dark: "dark" };
  const next = { auto: "light", light: "dark", dark: "auto" };
  const chosen = () => {
    try {
      return WORDS[localStorage.getItem(NAME)] ? localStorage.getItem(NAME) : "auto";
    } catch {
      return "auto"; // Storage may be forbidden.
    }
  };
  let theme = chosen();
  const apply = () => {
    document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) button.setAttribute("aria-label", `Theme: ${WORDS[theme]}`);
    if (button) button.title = `Theme: ${WORDS[theme]}`;
  };
  apply();
  document.addEventListener("DOMContentLoaded", () => {
    apply();
    document.getElementById("theme").addEventListener("click", () => {
      theme = next[theme];
      try {
        localStorage.setItem(NAME, theme);
      } catch {
        // It holds for this visit then.
      }
      apply();
    });
  });
})();
