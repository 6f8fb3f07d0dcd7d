// Presets are files: what the list held when the page was built may be old when a person opens it. A file to import is
// read here and put into the box of texts, which shows what it would change.
(function() {
    const MOST = 64 * 1024 + 1; // bytes, of which the last makes it too large

    function fileButton(tab, place) {
        const {part} = decouple;
        const file = part("input", "", "", {type: "file", accept: ".json,.txt", hidden: "", tabindex: "-1"});
        const button = part("button", "decouple-button", decoupleSay("Choose a file …"));
        button.addEventListener("click", () => file.click());
        file.addEventListener("change", async () => {
            if (!file.files.length) return;
            const box = decouple.find(tab, "presets_import_text", "textarea");
            box.value = await file.files[0].slice(0, MOST).text();
            box.dispatchEvent(new Event("input", {bubbles: true}));
            file.value = ""; // so that the same file can be chosen again
        });
        place.replaceChildren(button, file);
    }

    onUiLoaded(function() {
        for (const tab of decouple.TABS) {
            const place = decouple.find(tab, "presets_import_file", ".decouple-import");
            if (place) fileButton(tab, place);
            for (const name of ["enabled", "presets"]) {
                const label = decouple.find(tab, name, ".label-wrap");
                if (!label) continue;
                let open = label.classList.contains("open");
                new MutationObserver(() => {
                    const before = open;
                    open = label.classList.contains("open");
                    if (open && !before) decouple.find(tab, "presets_refresh")?.click();
                }).observe(label, {attributes: true, attributeFilter: ["class"]});
            }
        }
    });
})();
