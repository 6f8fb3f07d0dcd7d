// What the scripts of the accordion share: requests to the WebUI's routes, elements, and jobs with a control set for
// them alone.
Object.assign(globalThis.decouple ??= {}, {
    TABS: ["txt2img", "img2img"],

    // An element of the accordion by the name of its control.
    find(tab, name, within = "") {
        return gradioApp().querySelector(`#script_${tab}_attention_decoupling_${name} ${within}`);
    },

    // A route's answer under decouple/v1; `place` is an element of the accordion that holds the page's key.
    // Throws an Error that says in words what is wrong.
    async ask(place, path, given = {}) {
        let answer;
        try {
            answer = await fetch(new URL(`decouple/v1/${path}`, document.baseURI), {
                ...given, headers: {...given.headers, "X-Decouple-Key": place.dataset.key},
            });
        } catch (error) {
            throw new Error(decoupleSay("The WebUI doesn't answer: {reason}", {reason: error.message}));
        }
        if (answer.ok) return answer;
        const detail = (await answer.json().catch(() => ({}))).detail;
        throw new Error(typeof detail === "string" ? detail : detail?.[0]?.msg ?? decoupleSay("The WebUI answers {status}.", {status: answer.status}));
    },

    // An element with a class, a text and attributes; children that are no text come last.
    part(tag, name = "", text = "", attributes = {}, ...children) {
        const made = document.createElement(tag);
        if (name) made.className = name;
        made.textContent = text;
        if (tag === "button") made.type = "button";
        for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
        made.append(...children);
        return made;
    },

    // A control's value as a text.
    value(tab, name) {
        const box = this.find(tab, name);
        return (box?.querySelector("input:checked") ?? box?.querySelector("input[type=number], input"))?.value ?? "";
    },

    // Press Generate with a hidden control at `value` for this job alone: it is set before the host's own button reads
    // the controls, and taken back after, however that job ends.
    async generateWith(tab, name, value) {
        const box = this.find(tab, name, ":is(input, textarea)"), key = box.type === "checkbox" ? "checked" : "value";
        const before = box[key];
        const set = (now) => {
            if (box[key] !== now && key === "checked") box.click();
            if (box[key] !== now) {
                box.value = now;
                updateInput(box);
            }
            return new Promise((resolve) => setTimeout(resolve, 300)); // until gradio has taken it over, or has read it
        };
        try {
            await set(value);
            gradioApp().querySelector(`#${tab}_generate`).click();
            await set(value);
        } finally {
            await set(before);
        }
    },

    // Can a person see it?
    seen(element) {
        return element?.offsetParent !== null && document.visibilityState === "visible";
    },

    // Does the host draw for this tab? It shows its button to interrupt as long as it does.
    busy(tab) {
        return ["interrupt", "interrupting"].some((name) =>
            gradioApp().querySelector(`#${tab}_${name}`)?.style.display === "block");
    },
});
