"use strict";
{
  // The explorer: losses of the mixture of data experts for any weights, from the study's compressed tokens.
  const study = JSON.parse(document.getElementById("explorer-data").textContent);
  const K = study.experts.length;

  function array(text, type) {
    return new type(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  }
  const rows = study.domains.map(({ offset, logs, counts }) => ({
    offset,
    values: Float32Array.from(array(logs, Uint16Array), (steps) => Math.exp(-steps * study.step)),
    counts: array(counts, Float32Array),
  }));

  // offset - Σ_m n_m log Σ_k λ_k p_mk, nats per token.
  function losses(weights) {
    return rows.map(({ offset, values, counts }) => {
      let sum = 0;
      for (let m = 0; m < counts.length; m++) {
        let mixed = 0;
        for (let k = 0; k < K; k++) mixed += weights[k] * values[m * K + k];
        sum += counts[m] * Math.log(mixed);
      }
      return offset - sum;
    });
  }

  // One share is set; the others keep their proportions, or share alike where they are all nothing.
  function withShare(weights, which, share) {
    const rest = weights.reduce((total, w, k) => (k === which ? total : total + w), 0);
    return weights.map((w, k) => (k === which ? share : rest > 0 ? (w * (1 - share)) / rest : (1 - share) / (K - 1)));
  }

  const sliders = [...document.querySelectorAll("#explorer input[type=range]")];
  const results = [...document.querySelectorAll("#explorer tbody tr")];
  const presets = [...document.querySelectorAll("#explorer button")];
  const reference = losses(study.mixtures[study.reference]);
  let weights = study.mixtures[study.reference];

  function show() {
    sliders.forEach((slider, k) => {
      slider.value = weights[k];
      slider.setAttribute("aria-valuetext", `${(100 * weights[k]).toFixed(1)} %`);
      slider.nextElementSibling.textContent = `${(100 * weights[k]).toFixed(1)} %`;
    });
    presets.forEach((button) => {
      const same = study.mixtures[button.value].every((w, k) => Math.abs(w - weights[k]) < 1e-9);
      button.setAttribute("aria-pressed", same);
    });
    const now = losses(weights);
    const average = (values) => values.reduce((total, value, j) => total + study.objective[j] * value, 0);
    const shown = [...now, average(now)];
    const before = [...reference, average(reference)];
    const widest = Math.max(0.05, ...shown.map((value, j) => Math.abs(value - before[j])).filter(Number.isFinite));
    results.forEach((row, j) => {
      const change = shown[j] - before[j];
      row.cells[1].textContent = Number.isFinite(shown[j]) ? shown[j].toFixed(4) : "∞";
      row.cells[2].textContent = Number.isFinite(change) ? `${change < 0 ? "−" : "+"}${Math.abs(change).toFixed(4)}` : "∞";
      const bar = row.cells[3].firstElementChild;
      const width = Math.min(50, (50 * Math.abs(change)) / widest);
      bar.style.width = `${width}%`;
      bar.style.marginLeft = `${change < 0 ? 50 - width : 50}%`;
      bar.className = change < 0 ? "gain" : "pay";
    });
  }

  sliders.forEach((slider, k) =>
    slider.addEventListener("input", () => {
      weights = withShare(weights, k, Number(slider.value));
      show();
    }),
  );
  presets.forEach((button) =>
    button.addEventListener("click", () => {
      weights = study.mixtures[button.value];
      show();
    }),
  );
  show();
}
