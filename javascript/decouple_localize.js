// A text of ours as the WebUI's chosen localization has it, with the values put in for {names}. The host itself
// translates only what stands on the page whole; `python -m lib_decouple.webui.localize` collects the texts.
globalThis.decoupleSay = (text, values = {}) =>
    (globalThis.localization?.[text] ?? text).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
