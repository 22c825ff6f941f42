"use strict";

// The grid of numerals: one stop of the keyboard, arrows inside it, and a line that says what the cell is.
(() => {
  const grid = document.getElementById("grid");
  const readout = document.getElementById("numeral");
  const cells = [...grid.querySelectorAll("rect")];
  const steps = {
    ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10, PageUp: -100, PageDown: 100, Home: -1000, End: 1000,
  };
  let current = -1;

  const show = (index) => {
    cells[current]?.classList.remove("current");
    current = index;
    cells[current].classList.add("current");
    readout.textContent = cells[current].querySelector("title").textContent;
  };

  grid.tabIndex = 0;
  grid.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    if (step === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    show(Math.min(Math.max(current < 0 ? 0 : current + step, 0), cells.length - 1));
  });
  grid.addEventListener("pointerover", (event) => {
    const index = cells.indexOf(event.target.closest("rect"));
    if (index >= 0) show(index);
  });
})();
