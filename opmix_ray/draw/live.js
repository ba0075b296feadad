
// Asks the page's own server for news and puts them in place; open parts stay open, sorted tables sorted.
const EVERY = 2000; // milliseconds
const root = document.getElementById("now"), silent = document.getElementById("silent");
const place = part => (part.closest("section")?.id ?? "") + part.querySelector("summary").textContent.replace(/\d+/g, "#");
let tag = null;
async function refresh() {
  let again = true;
  try {
    const answer = await fetch("now", {cache: "no-store", headers: tag ? {"If-None-Match": tag} : {}});
    silent.hidden = answer.ok || answer.status === 304;
    if (answer.ok) {
      const news = await answer.text();
      tag = answer.headers.get("ETag");
      const opened = new Set([...root.querySelectorAll("details[open]")].map(place));
      const sorted = [...root.querySelectorAll("th[aria-sort]")].map(head =>
        [head.closest(".scroll").ariaLabel, head.cellIndex, head.getAttribute("aria-sort")]);
      root.innerHTML = news;
      root.querySelectorAll("details").forEach(part => { part.open = opened.has(place(part)); });
      for (const [label, column, way] of sorted) {
        const table = [...root.querySelectorAll(".scroll")].find(box => box.ariaLabel === label);
        const button = table?.querySelectorAll("thead button")[column];
        button?.click();
        if (way === "descending") button?.click();
      }
      again = !root.querySelector("[data-ended=finished]");
    }
  } catch { silent.hidden = false; }
  if (again) setTimeout(refresh, EVERY);
}
setTimeout(refresh, EVERY);
