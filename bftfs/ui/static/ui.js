// Makes pages more comfortable; each works without. The slider is made of the links to times of
// change, and the page on health looks again by itself.
"use strict";

(() => {
  const byId = (id) => document.getElementById(id);
  let loading = null;

  function say(text) {
    byId("said").textContent = text;
  }

  // Puts the parts with these ids of the page at `address` into this one; false if it fails.
  async function load(address, ids) {
    if (loading) loading.abort();
    const mine = (loading = new AbortController());
    try {
      const answer = await fetch(address, { signal: mine.signal });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (!page.getElementById("shown")) {
        const why = page.querySelector("[role=alert]");
        throw new Error(why ? why.textContent : `error ${answer.status}`);
      }
      for (const id of ids) {
        const old = byId(id);
        const found = page.getElementById(id);
        if (old && found) old.replaceWith(found);
      }
      document.title = page.title;
      return page;
    } catch (error) {
      if (error.name !== "AbortError") say(`That did not work: ${error.message}`);
      return null;
    }
  }

  // --- the slider ---------------------------------------------------------------------------

  function makeSlider() {
    const moments = byId("moments");
    if (!moments) return;
    const links = [...moments.querySelectorAll("li a")];
    if (links.length < 2) return;
    const frame = document.createElement("div");
    frame.className = "slider";
    const label = document.createElement("label");
    label.htmlFor = "slider";
    label.textContent = "Time of change";
    const slider = document.createElement("input");
    slider.type = "range";
    slider.id = "slider";
    slider.min = 0;
    slider.max = links.length - 1;
    slider.value = Math.max(0, links.findIndex((link) => link.ariaCurrent));
    const output = document.createElement("output");
    output.htmlFor = "slider";
    frame.append(label, slider, output);
    byId("steps").before(frame);

    const chosen = () => links[Number(slider.value)];
    function tell() {
      output.textContent = chosen().textContent;
      slider.setAttribute("aria-valuetext", chosen().textContent);
    }
    tell();
    slider.addEventListener("input", tell);
    slider.addEventListener("change", async () => {
      const link = chosen();
      const page = await load(link.href, ["crumbs", "steps", "shown"]);
      if (!page) return;
      for (const each of links) each.removeAttribute("aria-current");
      link.setAttribute("aria-current", "true");
      byId("at").value = page.getElementById("at").value;
      history.replaceState(null, "", link.href);
      const caption = document.querySelector("#shown caption");
      say(`${byId("shown-title").textContent}${caption ? `: ${caption.textContent}` : ""}`);
    });
  }

  // --- health -------------------------------------------------------------------------------

  function followHealth() {
    const place = byId("follow");
    if (!place) return;
    const label = document.createElement("label");
    const box = document.createElement("input");
    box.type = "checkbox";
    box.id = "following";
    box.checked = true;
    label.append(box, " Look again by itself");
    place.append(" ", label);
    const sentences = () =>
      [...document.querySelectorAll(".sentences li")].map((each) => each.textContent);

    async function again() {
      // What somebody is reading, or has chosen with the keyboard, stays.
      if (box.checked && !document.hidden && !byId("shown").contains(document.activeElement)) {
        const before = new Set(sentences());
        if (await load(location.href, ["shown"])) {
          // Ages of what is known change with every look: they are no news.
          const news = sentences().filter((each) => !before.has(each) && !/ ago\b/.test(each));
          if (news.length) say(news.join(". "));
        }
      }
      setTimeout(again, Number(byId("shown").dataset.every) * 1000);
    }
    setTimeout(again, Number(byId("shown").dataset.every) * 1000);
  }

  // --- audit --------------------------------------------------------------------------------

  function tellOfAudit() {
    const form = byId("ask");
    if (form) form.addEventListener("submit", () => say("Reading every directory below the path"));
  }

  makeSlider();
  followHealth();
  tellOfAudit();
})();
