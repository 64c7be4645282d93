"""The page, over core. Importing the package is cheap: the command line is here too, without Gradio."""
