// The page's own script: draws the figures from the data beside them, and moves them all with one slider.
//
// A figure.plot holds a JSON block {"drawings": [{data, layout, names, notes, frames, cursor, dot}, …], "columns": {…}}. `frames` are
// what a heat map shows at each checkpoint; `cursor` is the training step at which the x axis has its zero; `dot` has x
// and y at each checkpoint. A figure.panels holds {"parts": […], "frames": [[…], …], "csv": […]}: an SVG's markup by
// checkpoint.
"use strict";
{
  const ARRAYS = {
    f8: Float64Array, f4: Float32Array, i4: Int32Array, i2: Int16Array, i1: Int8Array,
    u4: Uint32Array, u2: Uint16Array, u1: Uint8Array,
  };
  const CONFIG = {
    displaylogo: false, responsive: true, showSendToCloud: false, plotlyServerURL: "", displayModeBar: !matchMedia("(hover: none)").matches && "hover",
    modeBarButtonsToRemove: ["zoomIn2d", "zoomOut2d", "autoScale2d", "lasso2d", "select2d"],
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)");
  const narrow = matchMedia("(max-width: 900px)");

  // ---- reading what the page carries -------------------------------------------------------------------------

  const read = (within) => decoded(JSON.parse(within.querySelector("script[type='application/json']").textContent));

  function decoded(value) {
    if (Array.isArray(value)) return value.map(decoded);
    if (value === null || typeof value !== "object") return value;
    if (!("bdata" in value)) return mapped(value, decoded);
    const bytes = Uint8Array.from(atob(value.bdata), (letter) => letter.charCodeAt(0));
    let numbers = new ARRAYS[value.dtype](bytes.buffer);
    if (value.scale) numbers = Float32Array.from(numbers, (each) => (each === 255 ? NaN : each * value.scale));
    const shape = value.shape ?? [numbers.length];
    return rows(numbers, typeof shape === "string" ? shape.split(",").map(Number) : shape);
  }

  // Nested rows of one array, without a copy of its numbers.
  function rows(numbers, [length, ...inner]) {
    if (!inner.length) return numbers;
    const size = inner.reduce((a, b) => a * b, 1);
    return Array.from({ length }, (_, n) => rows(numbers.subarray(n * size, (n + 1) * size), inner));
  }

  const mapped = (value, change) => Object.fromEntries(Object.entries(value).map(([key, each]) => [key, change(each)]));

  // ---- drawing -----------------------------------------------------------------------------------------------

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Plotly reads markup in text, so names are escaped for it; black is whatever colour text has.
  function shown(value) {
    if (typeof value === "string") {
      if (value === "#000000") return colour("--ink");
      return value.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
    }
    if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map(shown);
    return value !== null && typeof value === "object" && !ArrayBuffer.isView(value) ? mapped(value, shown) : value;
  }

  function template() {
    const axis = {
      gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line"),
      ticks: "", automargin: true, title: { standoff: 8 },
    };
    return {
      layout: {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        font: { color: colour("--ink"), family: "system-ui, sans-serif", size: 12 },
        hoverlabel: { font: { family: "system-ui, sans-serif" } },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--quiet"), activecolor: colour("--accent") },
        margin: { l: 56, r: 12, t: 30, b: 44 }, title: { font: { size: 13 }, x: 0, xref: "paper", y: 0.98 },
        xaxis: axis, yaxis: axis,
      },
    };
  }

  class Drawing {
    constructor(div, spec) {
      Object.assign(this, { div, spec, index: 0, near: false, hidden: new Set() });
      this.moves = spec.frames || spec.cursor !== null || spec.dot;
      this.small = div.parentElement.classList.contains("small");
    }

    // Curves end a little inside of the frame, so that the last step has its tick.
    widen() {
      const ends = this.spec.data.flatMap(({ x }) => (x.length ? [x[0], x[x.length - 1]] : []));
      const [low, high] = [Math.min(...ends), Math.max(...ends)];
      const wide = [low - 0.015 * (high - low), high + 0.015 * (high - low)];
      const now = this.div.layout?.xaxis.range; // of an earlier drawing, where a reader may have zoomed
      const zoomed = now && this.wide && now.some((end, n) => end !== this.wide[n]);
      if (high > low) this.layout.xaxis.range = zoomed ? [...now] : [...wide];
      this.wide = wide;
    }

    group(n) {
      return this.spec.data[n].legendgroup ?? `trace ${n}`;
    }

    // The legend below the figure: in columns, with the values at the slider's step. A click hides a curve.
    legend() {
      const { data, names, notes, cursor, frames } = this.spec;
      if (frames || cursor === null) return;
      const list = Object.assign(document.createElement("ul"), { className: "legend" });
      const longest = Math.max(...names.map((name) => name.length));
      list.style.setProperty("--entry", `${Math.min(30, Math.max(9, 5.5 + 0.42 * longest))}rem`);
      this.keys = [];
      for (const [n, trace] of data.entries()) {
        if (trace.showlegend === false) continue;
        const entry = list.appendChild(document.createElement("li")).appendChild(document.createElement("button"));
        Object.assign(entry, { title: notes[n], type: "button" });
        entry.setAttribute("aria-pressed", "true");
        const swatch = entry.appendChild(document.createElement("i"));
        const dash = { dash: "dashed", dot: "dotted", dashdot: "dashed" }[trace.line?.dash] ?? "solid";
        swatch.style.borderTopStyle = dash;
        swatch.style.borderTopColor = trace.line?.color === "#000000" ? "var(--ink)" : (trace.line?.color ?? "");
        entry.appendChild(document.createElement("span")).textContent = names[n];
        const value = Object.assign(entry.appendChild(document.createElement("span")), { className: "value" });
        this.keys.push({ value, xs: trace.x, ys: trace.y });
        entry.addEventListener("click", () => {
          const group = this.group(n);
          if (!this.hidden.delete(group)) this.hidden.add(group);
          entry.setAttribute("aria-pressed", String(!this.hidden.has(group)));
          this.draw();
        });
      }
      this.div.after(list);
      this.tell();
    }

    tell() {
      for (const { value, xs, ys } of this.keys ?? []) {
        const n = xs.findIndex((x) => Math.abs(x + this.spec.cursor - steps[this.index]) < 0.5);
        value.textContent = n >= 0 && Number.isFinite(ys[n]) ? brief(ys[n]) : "";
      }
    }

    async draw() {
      this.data = this.spec.data.map((trace, n) => ({ ...shown(trace), name: shown(this.spec.names[n]) }));
      for (const [n, trace] of this.data.entries()) if (this.hidden.has(this.group(n))) trace.visible = false;
      this.layout = { ...shown(this.spec.layout), template: template(), uirevision: true, showlegend: false };
      if (this.spec.cursor !== null) {
        this.widen();
        this.layout.xaxis.tickformat = ",";
      }
      if (touch.matches) this.layout.dragmode = false; // a finger scrolls the page
      if (this.spec.frames) {
        this.data[0].z = this.spec.frames[this.index];
        for (const axis of ["xaxis", "yaxis"]) Object.assign(this.layout[axis], { automargin: false, fixedrange: true });
        const tick = { ticks: "outside", ticklen: 4, tickcolor: "rgba(0,0,0,0)" };
        for (const axis of ["xaxis", "yaxis"]) {
          Object.assign(this.layout[axis], tick, this.small ? { showticklabels: false, title: { text: "" } } : {});
        }
        const size = this.spec.frames[0].length;
        if (size > 20) for (const axis of ["xaxis", "yaxis"]) this.layout[axis].dtick = Math.ceil(size / 10);
        if (this.small) this.layout.title = { ...this.layout.title, font: { size: 11 } };
        const margin = this.small ? { l: 6, r: 6, t: 24, b: 6 } : { l: 80, r: 8, t: 30, b: 64 };
        Object.assign(this.layout, { margin, dragmode: false });
        this.data[0].showscale = false;
      }
      await Plotly.react(this.div, this.data, this.layout, CONFIG);
    }

    // What moves lies over the figure, and costs no drawing by plotly, which takes 9 ms for a map.
    mark() {
      if (!this.moves) return;
      const { frames, dot, cursor } = this.spec;
      this.over = this.div.appendChild(document.createElement(frames ? "canvas" : "div"));
      this.over.className = frames ? "cells" : dot ? "dot" : "cursor";
      if (frames) this.colours = gradient(this.spec.data[0]);
      const measure = () => {
        const area = this.div.querySelector(".nsewdrag"); // what the axes enclose
        const size = (name) => Number(area.getAttribute(name));
        this.area = { left: size("x"), top: size("y"), width: size("width"), height: size("height") };
        if (!frames) this.point();
        else if (this.spec.data[0].texttemplate) this.paint();
      };
      measure();
      this.div.on("plotly_afterplot", measure);
      if (frames) return;
      this.div.on("plotly_relayouting", () => this.point());
      if (cursor !== null) this.div.addEventListener("click", (event) => this.pick(event));
    }

    // A click between the axes goes to the checkpoint nearest to it.
    pick(event) {
      const frame = this.div.getBoundingClientRect();
      const { left, top, width, height } = this.area;
      const [low, high] = this.div.layout.xaxis.range;
      const across = (event.clientX - frame.left - left) / width;
      const down = (event.clientY - frame.top - top) / height;
      if (Math.min(across, down) >= 0 && Math.max(across, down) <= 1)
        move(nearest(low + across * (high - low) + this.spec.cursor));
    }

    show(index) {
      if (!this.near || index === this.index) return; // what nobody sees is drawn when it comes into view
      this.index = index;
      this.tell();
      if (!this.spec.frames) {
        this.point();
        return;
      }
      this.paint();
      clearTimeout(this.resting);
      this.resting = setTimeout(() => this.settle(), 200);
    }

    // Where the slider rests, the map is plotly's again: with values under the pointer, and to be saved as a picture.
    async settle() {
      const index = this.index;
      this.data[0].z = this.spec.frames[index];
      await Plotly.react(this.div, this.data, this.layout, CONFIG);
      if (index !== this.index) return;
      if (this.data[0].texttemplate) this.paint(); // its numbers are read on any colour; those of plotly are not
      else this.over.style.visibility = "hidden";
    }

    paint() {
      const { left, top, width, height } = this.area;
      const z = this.spec.frames[this.index];
      const [across, down] = [width / z[0].length, height / z.length];
      Object.assign(this.over, { width: width * devicePixelRatio, height: height * devicePixelRatio });
      const style = { left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height}px` };
      Object.assign(this.over.style, style, { visibility: "visible" });
      const pen = this.over.getContext("2d");
      pen.scale(devicePixelRatio, devicePixelRatio);
      const letters = Math.max(8, Math.min(12, width / z[0].length / 3.2));
      Object.assign(pen, { font: `${letters}px system-ui, sans-serif`, textAlign: "center", textBaseline: "middle" });
      for (const [row, values] of z.entries()) {
        for (const [column, value] of values.entries()) {
          if (Number.isNaN(value)) continue;
          const { fill, light } = this.colours(value);
          pen.fillStyle = fill;
          pen.fillRect(column * across, row * down, across + 0.5, down + 0.5); // no seams between cells
          if (!this.spec.data[0].texttemplate) continue;
          pen.fillStyle = light ? "#000000" : "#ffffff";
          pen.fillText(value.toFixed(2), (column + 0.5) * across, (row + 0.5) * down);
        }
      }
    }

    point() {
      const { dot, cursor } = this.spec;
      const { left, top, width, height } = this.area;
      const { xaxis, yaxis } = this.div.layout;
      const part = (value, [low, high]) => (value - low) / (high - low);
      const across = part(dot ? dot.x[this.index] : steps[this.index] - cursor, xaxis.range);
      const up = dot ? part(dot.y[this.index], yaxis.range) : 1;
      Object.assign(this.over.style, {
        left: `${left + across * width}px`, top: `${top + (1 - up) * height}px`, height: dot ? "" : `${height}px`,
        visibility: across >= 0 && across <= 1 && up >= 0 && up <= 1 ? "visible" : "hidden",
      });
    }
  }

  // A trace's colour scale, as plotly interpolates it, in 256 steps; and which of its colours are light.
  function gradient({ colorscale, zmin, zmax }) {
    const stops = colorscale.map(([, hex]) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
    const colours = Array.from({ length: 256 }, (_, n) => {
      const place = (n / 255) * (stops.length - 1);
      const below = Math.min(Math.floor(place), stops.length - 2);
      const rgb = stops[below].map((each, c) => Math.round(each + (place - below) * (stops[below + 1][c] - each)));
      return { fill: `rgb(${rgb})`, light: luminance(rgb) > 0.179 };
    });
    return (value) => colours[Math.max(0, Math.min(255, Math.round((255 * (value - zmin)) / (zmax - zmin || 1))))];
  }

  // Relative luminance (WCAG 2): from 0.179 on, black has more contrast with a colour than white.
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((each) => each / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };

  // A number in a legend or readout: three digits, or whole.
  const brief = (value) => {
    const size = Math.abs(value);
    if (size >= 1000) return Math.round(value).toLocaleString("en-GB");
    return size >= 10 ? value.toFixed(1) : size >= 0.001 || size === 0 ? value.toFixed(3) : value.toExponential(1);
  };

  class Panels {
    constructor(figure) {
      this.spec = read(figure);
      this.panel = figure.querySelector("svg .panel");
      const drawn = figure.querySelector(".drawn"), svg = drawn.querySelector("svg");
      const width = svg.viewBox.baseVal.width;
      Object.assign(svg.style, { minWidth: `${0.68 * width}px`, maxWidth: `${Math.max(1000, width)}px` }); // legible
      new ResizeObserver(() => {
        figure.querySelector(".hint").classList.toggle("needed", drawn.scrollWidth > drawn.clientWidth);
        drawn.scrollLeft = drawn.scrollWidth; // on a phone: the end that has the answer
      }).observe(drawn);
    }

    show(index) {
      this.panel.innerHTML = this.spec.frames[index].map((part) => this.spec.parts[part]).join("\n");
    }
  }

  class Readout {
    constructor(list) {
      this.values = read(list);
      this.places = [...list.querySelectorAll("dd")];
    }

    show(index) {
      this.places.forEach((place, n) => {
        const value = this.values[n][index];
        place.textContent = Number.isFinite(value) ? brief(value) : "–";
      });
    }
  }

  // The line over the strip chart of transitions, at the slider's step.
  class Strip {
    constructor(figure) {
      this.line = figure.querySelector(".over b");
    }

    show(index) {
      this.line.style.left = `${(100 * index) / Math.max(1, steps.length - 1)}%`;
    }
  }

  // ---- data to take away -------------------------------------------------------------------------------------

  const quoted = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };

  // A row for every point, and, of what moves with the slider, for every checkpoint.
  function* points({ drawings, columns }) {
    const moving = drawings.some(({ frames }) => frames);
    yield [...(moving ? ["step"] : []), "series", columns.x, columns.y, ...(moving ? [columns.z] : [])];
    for (const { data, frames } of drawings) {
      for (const { name, x, y } of data) {
        if (!frames) for (const [n, value] of [...x].entries()) yield [name, value, y[n]];
        else
          for (const [index, z] of frames.entries())
            for (const [r, row] of [...y].entries())
              for (const [c, column] of [...x].entries()) if (!Number.isNaN(z[r][c])) yield [steps[index], name, column, row, z[r][c]];
      }
    }
  }

  function save(name, type, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  function offer(figure, spec) {
    const name = figure.dataset.name;
    figure.querySelector(".csv").addEventListener("click", () => {
      const lines = spec.csv ?? [...points(spec)];
      save(`${name}.csv`, "text/csv", lines.map((line) => line.map(quoted).join(",")).join("\n") + "\n");
    });
    figure.querySelector(".svg")?.addEventListener("click", () => {
      const svg = figure.querySelector("svg").cloneNode(true);
      save(`${name}-step-${steps[current]}.svg`, "image/svg+xml", new XMLSerializer().serializeToString(svg));
    });
  }

  // ---- the slider --------------------------------------------------------------------------------------------

  const scrubber = document.querySelector(".scrubber");
  const steps = scrubber ? read(scrubber).steps : [];
  const slider = scrubber?.querySelector("input");
  const play = scrubber?.querySelector(".play");
  let moved = [];
  let current = -1;
  let wanted = -1;
  let playing = null;

  const nearest = (step) =>
    steps.reduce((best, each, index) => (Math.abs(each - step) < Math.abs(steps[best] - step) ? index : best), 0);

  // Asks for a checkpoint. However fast the slider moves, the page follows once for each picture of the screen.
  function go(index) {
    if (wanted === current) requestAnimationFrame(follow);
    wanted = Math.max(0, Math.min(steps.length - 1, index));
  }

  function follow() {
    if (wanted === current) return;
    current = wanted;
    tell();
  }

  function tell() {
    slider.value = current;
    const words = `step ${steps[current].toLocaleString("en-GB")}`;
    slider.setAttribute("aria-valuetext", words);
    scrubber.querySelector(".now").textContent = words;
    for (const each of moved) each.show(current);
    scrubber.dispatchEvent(new CustomEvent("shown", { detail: steps[current] }));
  }

  // What a reader asks for ends the play.
  function move(index) {
    if (playing) toggle();
    go(index);
  }

  function toggle() {
    play.textContent = playing ? "▶" : "❚❚";
    play.setAttribute("aria-label", playing ? "Play" : "Pause");
    if (playing) {
      cancelAnimationFrame(playing.frame);
      playing = null;
      return;
    }
    const first = current === steps.length - 1 ? 0 : current;
    playing = {};
    const advance = (now) => {
      playing.since ??= now;
      const index = first + Math.floor(((now - playing.since) / 12_000) * steps.length); // the whole run in 12 s
      go(index);
      if (index >= steps.length - 1) toggle();
      else playing.frame = requestAnimationFrame(advance);
    };
    playing.frame = requestAnimationFrame(advance);
  }

  function press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const far = event.shiftKey ? 10 : 1;
    const keys = {
      ArrowLeft: () => move(wanted - far), ArrowRight: () => move(wanted + far), Home: () => move(0),
      End: () => move(steps.length - 1), " ": toggle,
    };
    if (!(event.key in keys) || (event.key === " " && event.target.closest?.("button, a"))) return;
    event.preventDefault();
    keys[event.key]();
  }

  const asked = () => /^#step=(\d+)$/.exec(location.hash)?.[1];

  // ---- putting it together -----------------------------------------------------------------------------------

  // Keeps up to date what is in view, or nearly.
  function watch(drawings) {
    const of = new Map(drawings.map((each) => [each.div, each]));
    const observer = new IntersectionObserver(
      (entries) => {
        for (const { target, isIntersecting } of entries) {
          of.get(target).near = isIntersecting;
          of.get(target).show(current);
        }
      },
      { rootMargin: "100px" },
    );
    const begin = () => [...of.keys()].forEach((div) => observer.observe(div));
    begin();
    addEventListener("beforeprint", () => {
      for (const each of drawings) Object.assign(each, { near: true }).show(current);
      for (const each of drawings) if (each.spec.frames) each.settle();
    });
    addEventListener("afterprint", () => {
      observer.disconnect();
      begin(); // tells anew what is in view
    });
  }

  async function start() {
    if (narrow.matches) for (const each of document.querySelectorAll(".terms")) each.open = false;
    const drawings = [];
    for (const figure of document.querySelectorAll("figure.plot")) {
      const spec = read(figure);
      const places = [...figure.querySelectorAll(".drawing")];
      drawings.push(...spec.drawings.map((each, n) => new Drawing(places[n], each)));
      offer(figure, spec);
    }
    const panels = [...document.querySelectorAll("figure.panels")].map((figure) => {
      const made = new Panels(figure);
      offer(figure, made.spec);
      return made;
    });
    const strips = [...document.querySelectorAll("figure.strips")].map((figure) => {
      offer(figure, read(figure));
      return new Strip(figure);
    });
    const readouts = [...document.querySelectorAll(".readout")].map((list) => new Readout(list));
    moved = [...readouts, ...panels, ...strips, ...drawings];
    if (scrubber) current = wanted = asked() === undefined ? steps.length - 1 : nearest(Number(asked()));
    for (const each of drawings) each.index = current;
    await Promise.all(drawings.map((each) => each.draw()));
    for (const each of drawings) each.legend();
    dark.addEventListener("change", () => drawings.forEach((each) => each.draw()));
    if (!scrubber) return;
    for (const each of drawings) each.mark();
    watch(drawings.filter((each) => each.moves));
    tell();
    slider.addEventListener("input", () => move(Number(slider.value)));
    play.addEventListener("click", toggle);
    scrubber.querySelector(".transition")?.addEventListener("click", (event) => {
      move(nearest(Number(event.currentTarget.dataset.step)));
    });
    addEventListener("keydown", press);
    addEventListener("hashchange", () => asked() && move(nearest(Number(asked()))));
  }

  start().then(() => document.documentElement.classList.add("ready"));
}
