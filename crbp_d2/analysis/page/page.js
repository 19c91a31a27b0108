(() => {
  const { numbers, pictures, maximum, overlays } = JSON.parse(
    document.getElementById("data").textContent,
  );
  const { steps, runs } = numbers;
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  // The image is dimmed under a coloured answer, so that both can be seen.
  const DIMMED = 0.6;
  const MOST_COLUMNS = 6;
  const byId = (id) => document.getElementById(id);
  const slider = byId("step");
  const table = byId("table");
  const state = { image: 0, index: 0, drawn: null, timer: 0 };
  const visible = runs.map(() => true);

  function element(name, properties = {}, ...children) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  }

  const scoreText = (value) =>
    value === null ? "none" : value.toFixed(maximum > 1 ? 1 : 3);

  function residualText(value) {
    if (value === null) return "none";
    if (value === 0 || value >= 0.01) return value.toFixed(3);
    return value.toExponential(1).replace("-", "\u2212");
  }

  /** How a run's lines look in the charts. */
  function swatch(number) {
    const svg = svgElement(byId("score-chart"), "svg", {
      class: "swatch", viewBox: "0 0 26 10", "aria-hidden": "true",
    });
    const dashes = DASHES[number % DASHES.length];
    svg.append(svgElement(svg, "path", { class: "run", d: "M0 5H26", "stroke-dasharray": dashes }));
    return ofRun(svg, number);
  }

  // ---- what is there once: panels, thumbnails, checkboxes

  function makePanel(title, number) {
    const canvas = element("canvas");
    canvas.setAttribute("role", "img");
    const marks = number === null ? [] : [swatch(number)];
    const name = element("p", { className: "name" }, ...marks, element("span", {}, title));
    const caption = element("figcaption", {}, name);
    const panel = element("figure", { className: "panel" }, canvas, caption);
    byId("panels").append(panel);
    if (number === null) return { panel, canvas, title };
    panel.dataset.run = title;
    const score = element("dd", { className: "score" });
    const residual = element("dd", { className: "residual" });
    const note = element("small", { className: "note" });
    caption.append(
      element(
        "dl", {},
        element("div", {}, element("dt", { textContent: numbers.score }), score),
        element("div", {}, element("dt", { textContent: "residual" }), residual),
      ),
      note,
    );
    return { panel, canvas, title, score, residual, note };
  }

  const imagePanel = makePanel("Image", null);
  const truthPanel = makePanel("Ground truth", null);
  const panels = runs.map((run, number) => makePanel(run.label, number));

  numbers.images.forEach((image, number) => {
    const input = element("input", { type: "radio", name: "image", checked: !number });
    input.setAttribute("aria-label", `Image ${number + 1}: ${image.name}`);
    input.addEventListener("change", () => chooseImage(number));
    const thumbnail = element("img", { src: pictures[number].image, alt: "" });
    document.querySelector(".thumbnails").append(
      element("label", { title: image.name }, input, thumbnail),
    );
  });

  runs.forEach((run, number) => {
    const input = element("input", { type: "checkbox", checked: true });
    input.addEventListener("change", () => {
      visible[number] = input.checked;
      panels[number].panel.hidden = !input.checked;
      arrange();
      show();
    });
    document.querySelector(".checks").append(
      element("label", {}, input, swatch(number), element("span", {}, run.label)),
    );
  });

  // ---- drawing

  async function decoded(source) {
    const image = new Image();
    image.src = source;
    await image.decode();
    return image;
  }

  async function chooseImage(number) {
    state.image = number;
    byId("panels").setAttribute("aria-busy", "true");
    const chosen = pictures[number];
    const [image, truth, ...answers] = await Promise.all(
      [chosen.image, chosen.truth, ...chosen.answers.map((one) => one.picture)].map(decoded),
    );
    // Another one may have been chosen meanwhile.
    if (state.image !== number) return;
    state.drawn = { ...chosen, image, truth, sheets: answers };
    fillTable();
    show();
    announce();
    byId("panels").setAttribute("aria-busy", "false");
  }

  /** Draws an answer: a place in a sheet, over the dimmed image where answers are overlays. */
  function paint({ canvas }, answer, left, top) {
    const [height, width] = state.drawn.size;
    if (canvas.width !== width || canvas.height !== height) {
      Object.assign(canvas, { width, height });
      canvas.classList.toggle("small", width <= 160);
    }
    const context = canvas.getContext("2d");
    context.globalAlpha = 1;
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    if (overlays || !answer) {
      context.globalAlpha = answer ? DIMMED : 1;
      context.drawImage(state.drawn.image, 0, 0);
      context.globalAlpha = 1;
    }
    if (answer) context.drawImage(answer, left, top, width, height, 0, 0, width, height);
  }

  function note(step, trained) {
    const past = step > trained ? `, now ${step - trained} past` : "";
    return `trained for ${trained} step${trained > 1 ? "s" : ""}${past}`;
  }

  /** As many panels a row as make rows of about one length, where the window is wide. */
  function arrange() {
    const count = 2 + visible.filter(Boolean).length;
    const columns = Math.ceil(count / Math.ceil(count / MOST_COLUMNS));
    byId("panels").style.setProperty("--columns", columns);
  }

  function show() {
    if (!state.drawn) return;
    const { index } = state;
    const step = steps[index];
    const of = numbers.images[state.image];
    slider.value = index;
    slider.setAttribute("aria-valuetext", `step ${step}`);
    byId("step-number").textContent = step;
    paint(imagePanel, null);
    paint(truthPanel, state.drawn.truth, 0, 0);
    imagePanel.canvas.setAttribute("aria-label", `Image ${of.name}`);
    truthPanel.canvas.setAttribute("aria-label", `Ground truth of image ${of.name}`);
    panels.forEach((panel, number) => {
      const { columns, cell, frames } = state.drawn.answers[number];
      const left = (frames[index] % columns) * cell[1];
      const top = Math.floor(frames[index] / columns) * cell[0];
      paint(panel, state.drawn.sheets[number], left, top);
      panel.canvas.setAttribute("aria-label", `${panel.title} at step ${step}, image ${of.name}`);
      panel.score.textContent = scoreText(of.score[number][index]);
      panel.residual.textContent = residualText(of.residual[number][index]);
      panel.note.textContent = note(step, runs[number].trained_steps);
    });
    drawCharts(of, index);
    table.querySelectorAll("tbody tr").forEach((row, number) => {
      row.classList.toggle("now", number === index);
    });
  }

  const go = (index) => {
    state.index = Math.max(0, Math.min(steps.length - 1, index));
    show();
  };
  const goAndTell = (index) => {
    go(index);
    announce();
  };
  const scoreChart = makeChart(byId("score-chart"), { maximum, pick: goAndTell });
  const residualChart = makeChart(byId("residual-chart"), { pick: goAndTell });

  function drawCharts(of, index) {
    const chosen = (values) =>
      runs
        .map((run, number) => ({ number, trained: run.trained_steps, values: values[number] }))
        .filter(({ number }) => visible[number]);
    const labels = runs.filter((_, number) => visible[number]).map((run) => run.label).join(", ");
    const where = `against the step, image ${of.name}: ${labels}. The table below has the numbers.`;
    scoreChart({ steps, runs: chosen(of.score), index }, `${numbers.score} ${where}`);
    residualChart({ steps, runs: chosen(of.residual), index }, `Residual ${where}`);
  }

  function fillTable() {
    const of = numbers.images[state.image];
    const row = (kind, cells) =>
      element("tr", {}, ...cells.map((text) => element(kind, { textContent: text })));
    const titles = runs.flatMap((run) => [`${run.label}: ${numbers.score}`, "residual"]);
    const body = steps.map((step, index) =>
      row("td", [
        step,
        ...runs.flatMap((_, number) => [
          scoreText(of.score[number][index]),
          residualText(of.residual[number][index]),
        ]),
      ]),
    );
    table.querySelector("div").replaceChildren(
      element("table", {},
        element("thead", {}, row("th", ["step", ...titles])),
        element("tbody", {}, ...body)),
    );
  }

  /** Tells screen readers the numbers, unless they change all the time. */
  function announce() {
    if (state.timer) return;
    const told = panels
      .filter((_, number) => visible[number])
      .map(({ title, score, residual }) =>
        `${title}: ${numbers.score} ${score.textContent}, residual ${residual.textContent}`);
    byId("status").textContent = `Step ${steps[state.index]}. ${told.join(". ")}.`;
  }

  // ---- playing

  function pause() {
    clearTimeout(state.timer);
    state.timer = 0;
    document.body.classList.remove("playing");
    byId("play").querySelector("span").textContent = "Play";
    announce();
  }

  function play() {
    if (state.index === steps.length - 1) go(0);
    document.body.classList.add("playing");
    byId("play").querySelector("span").textContent = "Pause";
    const advance = () => {
      go(state.index + 1);
      if (state.index === steps.length - 1) pause();
      else state.timer = setTimeout(advance, calm.matches ? 1000 : 200);
    };
    state.timer = setTimeout(advance, calm.matches ? 1000 : 200);
  }

  const toggle = () => (state.timer ? pause() : play());

  slider.max = steps.length - 1;
  slider.addEventListener("input", () => goAndTell(Number(slider.value)));
  byId("play").addEventListener("click", toggle);
  document.addEventListener("keydown", (event) => {
    const plain = !event.ctrlKey && !event.altKey && !event.metaKey;
    if (!plain || event.target.closest("button, input, select, summary, a")) return;
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === " ") {
      event.preventDefault();
      toggle();
    } else if (by) {
      event.preventDefault();
      goAndTell(state.index + by);
    }
  });
  arrange();
  chooseImage(0);
})();
