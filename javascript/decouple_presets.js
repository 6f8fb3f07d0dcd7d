// Presets are files: what the list held when the page was built may be old when a person opens it.
onUiLoaded(function() {
    for (const tab of ["txt2img", "img2img"]) {
        const part = gradioApp().querySelector(`#script_${tab}_attention_decoupling_presets`);
        part?.querySelector(".label-wrap")?.addEventListener("click", function() {
            part.querySelector(`#script_${tab}_attention_decoupling_presets_refresh`)?.click();
        });
    }
});
