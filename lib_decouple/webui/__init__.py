"""What the WebUIs' users see: the accordion, API arguments, infotext. gradio and the hosts' conventions."""
